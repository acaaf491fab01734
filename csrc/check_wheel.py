"""Computes with ``infodisent._C`` of the installed package, which needs no torch.

``python csrc/check_wheel.py`` fails where the module is missing, does not load or computes
something else than plain loops. Wheels are tested by it (``[tool.cibuildwheel]``).
"""

import array
import importlib.metadata
import importlib.util
import math
import random

IMAGES, PIXELS, CHANNELS = 3, 50, 24


def native_module():
    """``infodisent._C``, without ``infodisent``, whose import needs torch."""
    for file in importlib.metadata.files("infodisent") or []:
        if file.parts[:-1] == ("infodisent",) and file.name.startswith("_C."):
            spec = importlib.util.spec_from_file_location("infodisent._C", file.locate())
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise SystemExit("infodisent._C is not in the installed package: it was not built")


def address(numbers):
    """Where an array begins."""
    return numbers.buffer_info()[0]


def pooled(y):
    """(pos, neg, pos_index, neg_index), each [IMAGES * CHANNELS], of y[image][pixel][channel]."""
    rows = []
    for image in y:
        for column in zip(*image):
            pos, neg = max(0.0, *column), max(0.0, *(-value for value in column))
            places = (column.index(pos) if pos else -1, column.index(-neg) if neg else -1)
            rows.append((pos, neg, *places))
    return tuple(zip(*rows))


def check(name, outputs, wanted):
    """Places must be equal, values to six digits."""
    for ours, theirs in zip(outputs, wanted):
        for a, b in zip(ours, theirs):
            if not math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6):
                raise SystemExit(f"{name}: {a} instead of {b}")
    print(f"{name}: right")


def main():
    """Pool, product and pool where the processor has a tile for it, and the rotation's passes."""
    module = native_module()
    print(f"openmp: {module.openmp}; {module.dispatch}; tile: {module.tiles or 'none'}")
    draw = random.Random(1)
    # small integers: exact in float32, with ties
    x = [[[float(draw.randint(-9, 9)) for _ in range(CHANNELS)] for _ in range(PIXELS)]
         for _ in range(IMAGES)]  # fmt: skip
    flat = array.array("f", [value for image in x for pixel in image for value in pixel])
    u = [[float(draw.randint(-3, 3)) for _ in range(CHANNELS)] for _ in range(CHANNELS)]
    weights = array.array("f", [value for row in u for value in row])
    outputs = [array.array(code, [0] * (IMAGES * CHANNELS)) for code in "ffii"]
    places = [address(output) for output in outputs]
    # 0: float32; strides of [IMAGES, PIXELS, CHANNELS]
    layout = (0, IMAGES, PIXELS, CHANNELS, PIXELS * CHANNELS, CHANNELS, 1)
    module.mx_pool(address(flat), *layout, *places, 2)
    check("mx_pool", outputs, pooled(x))
    if module.tiles:
        module.rotate_pool(address(flat), *layout, address(weights), 0, *places, 2, 0)
        y = [[[sum(map(float.__mul__, row, pixel)) for row in u] for pixel in image] for image in x]
        check("rotate_pool", outputs, pooled(y))
    skew = array.array("f", [0.0] * CHANNELS**2)
    module.combine([address(weights)], [address(skew)], [1.0], [-1], CHANNELS, False, 2)
    wanted = [u[i][j] - u[j][i] for i in range(CHANNELS) for j in range(CHANNELS)]
    check("combine", [skew], [wanted])


if __name__ == "__main__":
    main()
