"""What the reports of stores, disks and plans find, and what they judge by."""

from __future__ import annotations

import argparse
import gc
import time

import pytest
import torch

from benchmarks import bench_scale, float8_store, plan_check
from infodisent.data.encoding import encode
from infodisent.files import read_json, write_json, write_tensors

MACHINE = {"machine": {"device": "a"}, "commit": "b"}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """512 images in 8 shards."""
    monkeypatch.setattr(bench_scale, "SHARD", 64)
    monkeypatch.setattr(bench_scale, "BATCH", 32)
    return bench_scale.make_store(tmp_path / "maps", 16, 4, 512 * 16 * 4 * 2 / 1e9)


def test_a_store_is_made_once_and_read_whole(store, monkeypatch):
    assert len(store) == 512
    there = sorted(path.stat().st_mtime_ns for path in store.path.iterdir())
    again = bench_scale.make_store(store.path, 16, 4, 512 * 16 * 4 * 2 / 1e9)
    assert sorted(path.stat().st_mtime_ns for path in again.path.iterdir()) == there
    times = iter((0.0, 1.0) * 4)
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    found = bench_scale.disk(store, 1)
    assert found["cold"] == found["bytes"] == found["warm"] == 512 * 16 * 4 * 2
    assert found["sequential"] == sum(p.stat().st_size for p in store.path.glob("shard-*"))


def test_a_quarter_has_the_first_shards(store):
    few = bench_scale.FeatureStore(bench_scale.quarter(store))
    assert len(few) == 128
    assert torch.equal(few.gather(torch.arange(128)), store.gather(torch.arange(128)))


def test_batches_come_from_all_of_the_store(store):
    source = bench_scale.batches_from(store)
    seen = torch.cat([next(source) for _ in range(16)]).sum((1, 2)).sort().values
    everything = store.gather(torch.arange(512), dtype=None).sum((1, 2)).sort().values
    assert torch.equal(seen, everything)


def test_bars_of_scale():
    parts = {
        "resnet50 disk": {"bytes": 1e9, "sequential": 1e9, "cold": 0.69e9, "warm": 2e9},
        "resnet50 steps": {
            "one": {"from disk": 0.9, "from memory": 1.0},
            "processes": {"from disk": 0.8, "from memory": 1.0},
            "count": 2,
            "disk / memory": 0.9,
            "processes / one": 0.89,
        },
        "vit_b_16 memory": {"images": [8, 2], "MiB": [12.0, 10.0]},
        "vit_b_16 extraction": {"images": 3, "images/s": 1.5},
    }
    report = {**MACHINE, "parts": {name: part | {"others": 0.0} for name, part in parts.items()}}
    text = bench_scale.markdown(report)
    for line in (
        "| resnet50 | shuffled / sequential | 0.69 | ≥ 0.7 | **no** |",
        "| resnet50 | disk / memory | 0.90 | ≥ 0.9 | yes |",
        "| resnet50 | processes / one | 0.89 | ≥ 0.9 | **no** |",
        "| vit_b_16 | memory, all / a quarter | 1.20 | ≤ 1.1 | **no** |",
    ):
        assert line in text


def test_parts_of_scale_are_kept_and_not_repeated(tmp_path, monkeypatch):
    measured = []

    def measure(name, part, options):
        measured.append(f"{name} {part}")
        return {"images": 1, "images/s": 2.0}

    monkeypatch.setattr(bench_scale, "measure", measure)
    out = tmp_path / "out.json"
    command = ["bench_scale", "--folder", str(tmp_path), "--out", str(out), "--only", "extraction"]
    for more in ([], [], ["--gigabytes", "3"], ["--gigabytes", "3", "--again"]):
        monkeypatch.setattr("sys.argv", command + more)
        bench_scale.main()
    assert measured == ["resnet50 extraction", "vit_b_16 extraction"] * 3
    assert read_json(out)["parts"]["resnet50 extraction"]["images/s"] == 2


def test_a_plan_is_compared_stage_by_stage():
    said = {
        "store": 100,
        "memory": 200,
        "rates": {},
        "stages": [
            {"name": "extraction", "seconds": 10.0},
            {"name": "training", "seconds": 6.0},
            {"name": "evaluation", "seconds": 2.0},
            {"name": "prototypes", "seconds": 0.1},
        ],
    }
    laps = {"extract": 12.0, "baselines": 0.0, "train": 5.0, "train no rotation": 5.5}
    took = {"laps": laps | {"prototypes": 0.9}, "bytes": 126, "memory": 155, "others": 0.0}
    row = plan_check.compare(said, took)
    assert row["seconds"] == {
        "extraction": [10.0, 12.0],
        "training, evaluation": [8.0, 10.5],
        "prototypes": [0.1, 0.9],
        "all": [18.1, 23.4],
    }
    # 0.9 seconds are no tenth of 23.4
    assert plan_check.judged(row) == {
        "extraction": True, "training, evaluation": False, "all": False, "bytes": False,
        "memory": True,
    }  # fmt: skip
    text = plan_check.markdown({**MACHINE, "cases": {"infodisent=8": row}})
    assert "| infodisent, 8 | training, evaluation, s | 8.0 | 10.5 | 1.31 | **no** |" in text
    assert "| infodisent, 8 | prototypes, s | 0.1 | 0.9 | 9.00 |  |" in text


def test_memory_is_seen_between_two_times():
    gc.collect()  # what earlier tests left would be given back meanwhile
    with plan_check.Memory() as memory:
        start = time.perf_counter()
        held = torch.ones(1 << 26)
        time.sleep(5 * plan_check.EVERY)
        end = time.perf_counter()
        del held
    assert memory.most(start, end) == pytest.approx(4 << 26, rel=0.2)


def test_pictures_are_photographs_of_classes(tmp_path):
    folder = plan_check.make_pictures(tmp_path, 8)
    images = plan_check.scan_folder(folder)
    assert (len(images.items), len(images.classes)) == (8, plan_check.CLASSES)
    assert plan_check.make_pictures(tmp_path, 8) == folder


def test_both_dtypes_of_a_seed_are_compared(store, tmp_path):
    folder = tmp_path / "float8"
    for number in range(8):
        at = torch.arange(64) + 64 * number
        maps, scale = encode(store.gather(at))
        tensors = {"features": maps, "scale": scale, "item": at}
        written = {"made_from": store.meta["made_from"], "skipped": []}
        write_tensors(bench_scale.shard_path(folder, number), tensors, written)
    write_json(folder / bench_scale.MANIFEST, store.meta)
    about = float8_store.difference(store, bench_scale.FeatureStore(folder))
    assert about["bytes"] == {"float16": 512 * 16 * 4 * 2, "float8": 512 * 16 * 4}
    assert 0.01 < about["relative_error"] < 1 / 16
    few = bench_scale.FeatureStore(bench_scale.quarter(store))
    with pytest.raises(ValueError, match="hold other images"):
        float8_store.difference(store, few)
    run = {"images": "a", "accuracy": 0.9, "loss": 0.3, "explanation_size": 4.0}
    runs = {
        "1": run | {"dtype": "float16", "seed": 0},
        "2": run | {"dtype": "float8", "seed": 0, "accuracy": 0.88},
        "3": run | {"dtype": "float16", "seed": 1},  # alone
    }
    text = float8_store.markdown({**MACHINE, "sets": {"a": about}, "runs": runs})
    assert "| a | 1 | 90.0% | 88.0% | -2.00 | 0.300 | 0.300 | 4.0, 4.0 | 0, 0 |" in text


def test_options_name_the_sets_of_a_dtype(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(float8_store.image_sets.demo, "solar_cells", lambda: "cells")
    monkeypatch.setattr(
        float8_store.image_sets, "extract", lambda *a, dtype: made.append((a, dtype))
    )
    options = argparse.Namespace(features=tmp_path, images=[])
    for dtype in float8_store.DTYPES:
        float8_store.image_sets.extracted("model", options, dtype)
    assert made == [
        (("model", "cells", tmp_path / "elpv"), "float16"),
        (("model", "cells", tmp_path / "elpv-float8"), "float8"),
    ]
