"""How a folder is laid out: class folders, splits of them, a wrapper around them; or refused.

A folder called ``train`` is a split or a class by what lies in it and beside it. What cannot be
told apart is refused, with what was seen and what to pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infodisent.data.items import counted, listed
from infodisent.data.splits import SplitName, split_name
from infodisent.data.tree import Folder, LeftOut, read_tree

# Folders that public data sets put beside their splits.
_UNLABELLED = {"unlabeled", "unlabelled", "unsup", "pred", "predict", "prediction", "extra"}
_PASS = "pass --train DIR --val DIR (scan_folder(train=…, val=…)) or a CSV of image,label,split"

# What a label may be beside images: a picture too, but no class.
_PICTURES = {"images", "image", "imgs", "img", "jpegimages"}
_MASKS = {"masks", "mask", "labels", "label", "annotations", "annotation", "ground_truth", "gt"}
_MASKS |= {"groundtruth", "segmentation", "segmentations", "segmentationclass"}

ClassFiles = dict[str, list[str]]
"""Image files by class, both sorted."""


@dataclass
class Layout:
    """Image files by split and class.

    Attributes:
        root: folder in which the classes or splits lie.
        splits: "train" and "val"; or "all" alone, where nothing divides the images; or, where
            images are only to be scored, "val" alone.
        places: folder of each split, for messages.
        notices: how it was understood and what was left out.
    """

    root: Path
    splits: dict[str, ClassFiles]
    places: dict[str, Path] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


class _Reading:
    """The reading of one folder.

    Args:
        base: the folder.
        known: classes of a model whose images are to be scored: their names are never splits.
            None where a model is to be trained.
    """

    def __init__(self, base: Path, known: Collection[str] | None = None) -> None:
        self.base, self.testing, self.known = base, known is not None, frozenset(known or ())
        self.left_out = LeftOut(base)
        self.notices: list[str] = []
        self.folder = read_tree(base, self.left_out)

    def layout(self) -> Layout:
        self._enter_wrappers()
        roles = self.roles_of(self.folder.folders)
        layout = self._splits(roles) or self._splits_in_classes() or self._classes(roles)
        layout.notices = [*self.notices, *self.left_out.notices()]
        return layout

    def refuse(self, what: str, advice: str = _PASS) -> ValueError:
        return ValueError(f"{self.folder.path} {what}; {advice}")

    def roles_of(self, names: Iterable[str]) -> dict[str, SplitName]:
        """What the names say of splits, as far as they do; a model's classes say nothing."""
        found = {name: split_name(name) for name in names if name not in self.known}
        return {name: role for name, role in found.items() if role is not None}

    def _enter_wrappers(self) -> None:
        while len(self.folder.folders) == 1:
            name, inner = next(iter(self.folder.folders.items()))
            if name in self.known or not inner.folders:
                return
            role = split_name(name)
            if role is not None and not self.testing:
                raise self.refuse(
                    f"holds only {name}/, a split without its counterpart",
                    f"pass {inner.path} to hold out a part of it, or --train DIR --val DIR",
                )
            self._loose(self.folder)
            self.notices.append(f"taken from {inner.path}, the only folder with images")
            self.folder = inner

    def _loose(self, folder: Folder) -> None:
        for image in folder.images:
            self.left_out.add("loose", Path(image))

    def _splits(self, roles: Mapping[str, SplitName]) -> Layout | None:
        """Splits of class folders; None where the folders are classes."""
        folders = self.folder.folders
        folds = [name for name, role in roles.items() if role.role == "fold"]
        if len(folds) > 1:
            raise self.refuse(f"holds the folds {listed(_slashed(folds))}")
        parts: dict[str, dict[str, list[str]]] = {}
        for name, found in roles.items():
            parts.setdefault(found.of, {}).setdefault(found.role, []).append(name)
        whole = [part for part in parts.values() if self._is_whole(part)]
        if not whole:
            self._refuse_lone_splits(roles)
            return None
        if len(whole) > 1:
            raise self.refuse(f"holds several pairs of splits: {self.folder.found()}")
        part = whole[0]
        names = [name for group in part.values() for name in group]
        others = [n for n in folders if n not in names and n.lower() not in _UNLABELLED]
        trained = {c for name in part.get("train", []) for c in _class_names(folders[name])}
        held = [name for role in ("val", "test") for name in part.get(role, [])]
        tested = {c for name in held for c in _class_names(folders[name])}
        if not (tested & self.known if self.testing else tested & trained):
            if len(others) > 1:
                return None  # vehicles: car, plane, train, test
            if not trained or not tested:
                empty = [name for name in names if not _class_names(folders[name])]
                advice = f"pass {folders[part['train'][0]].path} alone or " if trained else ""
                raise self.refuse(
                    f"holds splits, but {listed(_slashed(empty))} with images in no class folder",
                    f"{advice}{_PASS}",
                )
        chosen: dict[str, str] = {}
        for kind, group in part.items():
            able = [name for name in group if folders[name].folders] or group
            if len(able) > 1:
                raise self.refuse(f"holds several {kind} splits: {listed(_slashed(able))}")
            chosen[kind] = able[0]
        return self._take_splits(chosen)

    def _is_whole(self, part: Mapping[str, list[str]]) -> bool:
        return ("train" in part or self.testing) and ("val" in part or "test" in part)

    def _take_splits(self, part: Mapping[str, str]) -> Layout:
        folders = self.folder.folders
        held = [part[role] for role in ("val", "test") if role in part]
        chosen = next((name for name in held if folders[name].folders), held[0])
        train = part.get("train", "")
        if self.testing:
            self.notices.append(f"scored: {chosen}/ of {listed(_slashed(folders), 6)}")
        elif (train, chosen) != ("train", "val"):
            self.notices.append(f"splits: trained on {train}/, held out {chosen}/")
        for name in held:
            if name != chosen and not self.testing:
                number = counted(len(list(folders[name].every())), "image")
                self.notices.append(f"left out: {name}/ with {number}, {chosen}/ is held out")
        if not self.testing:
            self._loose(self.folder)
            used = {*held, train}
            for name in folders:
                if name not in used:
                    self.left_out.add("beside", folders[name].path)
        layout = Layout(self.folder.path, {})
        if not self.testing:
            layout.places["train"] = folders[train].path
            layout.splits["train"] = self.class_files(folders[train])
        layout.places["val"] = folders[chosen].path
        layout.splits["val"] = self.class_files(
            folders[chosen], layout.splits.get("train", self.known)
        )
        return layout

    def class_files(self, folder: Folder, classes: Collection[str] = ()) -> ClassFiles:
        """Files by class of a folder of class folders, which may lie in a wrapper of its own.

        Raises:
            ValueError: the folders are no classes but images and their masks.
        """
        while len(folder.folders) == 1:
            name, inner = next(iter(folder.folders.items()))
            if len(inner.folders) < 2 or name in classes:
                break
            self._loose(folder)
            self.notices.append(f"taken from {inner.path}, the only folder with images")
            folder = inner
        plain = {name.lower(): name for name in folder.folders if name not in self.known}
        masks = _MASKS & set(plain)
        if masks and _PICTURES & set(plain):
            names = [plain[name] for name in sorted((_PICTURES | masks) & set(plain))]
            raise ValueError(
                f"{folder.path} holds {listed(_slashed(names))}: pictures and what is drawn on "
                f"them, not classes; {_PASS}"
            )
        self._loose(folder)
        for name in folder.empty:
            self.left_out.add("empty", folder.path / name)
        return {name: sorted(inner.every()) for name, inner in folder.folders.items()}

    def _refuse_lone_splits(self, roles: Mapping[str, SplitName]) -> None:
        """Refuse split names without their counterpart, unless what is around shows a class."""
        folders = self.folder.folders
        # Two sorts of train, steam_train and bullet_train, are classes.
        sorts = [n for n, role in roles.items() if role.of and not folders[n].folders]
        others = [n for n in folders if n not in roles and n.lower() not in _UNLABELLED]
        if roles and not others and len(sorts) < len(folders):
            raise self.refuse(
                f"holds only {listed(_slashed(folders))}: splits without their counterpart"
            )
        for name in roles:
            for other in others:
                shared = sorted(set(folders[name].folders) & set(folders[other].folders))
                if len(shared) > 1:
                    raise self.refuse(
                        f"holds {name}/ and {other}/, which both hold {listed(_slashed(shared))}: "
                        f"they look like splits, not classes"
                    )

    def _splits_in_classes(self) -> Layout | None:
        """``<class>/{train,val}``; None where the class folders hold no splits."""
        roles = {name: self.roles_of(inner.folders) for name, inner in self.folder.folders.items()}
        kinds = {role.role for found in roles.values() for role in found.values()}
        folds = max((sum(r.role == "fold" for r in f.values()) for f in roles.values()), default=0)
        if folds > 1 or (len(kinds) > 1 and "fold" in kinds):
            name = next(n for n, f in roles.items() if any(r.role == "fold" for r in f.values()))
            raise self.refuse(f"holds {name}/ with the folds {listed(_slashed(roles[name]))}")
        if len(kinds) < 2:
            return None
        splits: dict[str, ClassFiles] = {"train": {}, "val": {}}
        spare: list[str] = []
        for name, found in roles.items():
            inner = self.folder.folders[name]
            by_role: dict[str, list[str]] = {}
            for part, role in found.items():
                by_role.setdefault(role.role, []).append(part)
            held = by_role.get("val", by_role.get("test", []))
            if len(by_role.get("train", [])) != 1 or len(held) != 1:
                other = next(n for n, f in roles.items() if f)
                raise self.refuse(
                    f"holds splits inside its class folders, but not the same in each: {other}/ "
                    f"has {listed(_slashed(roles[other]))}, {name}/ has {inner.found()}"
                )
            self._loose(inner)
            used = [by_role["train"][0], held[0]]
            spare += [f"{name}/{part}" for part in inner.folders if part not in used]
            for split, part in zip(splits, used, strict=True):
                splits[split][name] = sorted(inner.folders[part].every())
        example = next(f"{name}/{part}" for name, found in roles.items() for part in found)
        self.notices.append(f"splits: taken from the folders inside each class, such as {example}")
        if spare:
            self.notices.append(f"left out: {counted(len(spare), 'folder')} ({listed(spare)})")
        if self.testing:
            del splits["train"]
        return Layout(self.folder.path, splits, dict.fromkeys(splits, self.folder.path))

    def _classes(self, roles: Mapping[str, SplitName]) -> Layout:
        folders = self.folder.folders
        odd = [n for n in folders if n in roles or n.lower() in _UNLABELLED - self.known]
        if odd:
            what = "classes" if len(odd) > 1 else "a class"
            self.notices.append(f"taken for {what}, by what lies beside: {listed(map(repr, odd))}")
        inner = [_unwrapped(folder) for folder in folders.values()]
        shared = sorted(set.intersection(*(set(f.folders) for f in inner))) if inner else []
        if len(shared) > 1 and len(inner) > 1:
            self.notices.append(
                f"every class folder holds {listed(_slashed(shared))}: parts of the classes "
                f"{listed(folders)}; if they are the classes, {_PASS}"
            )
        files = self.class_files(self.folder, self.known)
        split = "val" if self.testing else "all"
        return Layout(self.folder.path, {split: files}, {split: self.folder.path})


def _unwrapped(folder: Folder) -> Folder:
    while len(folder.folders) == 1 and not folder.images:
        folder = next(iter(folder.folders.values()))
    return folder


def _class_names(split: Folder) -> set[str]:
    """Folders in a split that may be classes, also where they lie in a wrapper of their own."""
    names = {name for name in split.folders if name.lower() not in _PICTURES}
    return names | set(_unwrapped(split).folders)


def _slashed(names: Iterable[str]) -> list[str]:
    return [f"{name}/" for name in names]


def read_layout(base: Path, known: Collection[str] | None = None) -> Layout:
    """The layout of a folder of images.

    Args:
        base: the folder.
        known: classes of a model whose images are to be scored; None where one is to be trained.

    Raises:
        FileNotFoundError: `base` is not a folder.
        ValueError: what it holds can be understood in more than one way.
    """
    return _Reading(base, known).layout()


def read_two(train: Path, val: Path) -> Layout:
    """The layout of two folders of class folders, given as the splits.

    Raises:
        FileNotFoundError: one is not a folder.
        ValueError: one is the other or lies in it, or holds splits itself.
    """
    if train == val or train in val.parents or val in train.parents:
        raise ValueError(f"train is {train} and val is {val}: one must not hold the other")
    layout = Layout(train, {}, {"train": train, "val": val})
    for split, place in layout.places.items():
        reading = _Reading(place)
        roles = reading.roles_of(reading.folder.folders)
        if {r.role for r in roles.values()} > {"train"} and len(roles) == len(
            reading.folder.folders
        ):
            raise ValueError(f"{split} is {place}, which holds splits itself: {listed(roles)}")
        layout.splits[split] = reading.class_files(reading.folder, layout.splits.get("train", ()))
        layout.notices += [*reading.notices, *reading.left_out.notices()]
    return layout
