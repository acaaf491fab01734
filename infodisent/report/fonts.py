"""Letters that matplotlib's usual font lacks: another font of the machine draws them, or words do.

Class and file names come in all scripts. Where any installed font has a letter, the figure takes it
from there; where none has, the letter is spelt out: kana, hangul and other alphabets by the sound
in their Unicode name, an emoji as "[fish]", an ideograph as its code "\\u732b". Said once.
"""

from __future__ import annotations

import contextlib
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.font_manager import FontProperties

from infodisent.progress import console

PREFERRED = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR"),
    *("Source Han Sans", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "PingFang HK", "Hiragino Sans", "Hiragino Sans GB"),
    *("Apple SD Gothic Neo", "Heiti TC", "STHeiti", "Arial Unicode MS", "Microsoft YaHei"),
    *("Yu Gothic", "Meiryo", "MS Gothic", "Malgun Gothic", "SimHei", "SimSun", "IPAexGothic"),
    *("Noto Sans Arabic", "Noto Naskh Arabic", "Geeza Pro", "Noto Sans Hebrew", "Noto Sans Thai"),
    *("Noto Sans Devanagari", "Nirmala UI", "Kohinoor Devanagari", "Leelawadee UI", "Segoe UI"),
    *("Noto Emoji", "Symbola", "Segoe UI Emoji", "Segoe UI Symbol", "Apple Symbols", "Unifont"),
)
"""Families to look into first, the better looking before those that have everything."""
UNUSABLE = ("color emoji", "lastresort", "last resort", "adobe blank")
"""Parts of the names of fonts whose glyphs are bitmaps, or boxes that stand for any letter."""

_spelt: set[str] = set()
_announced: set[str] = set()


def font_options(families: list[str], weight: str = "normal") -> dict[str, Any]:
    """Options of a matplotlib text: bold only where all the families are, else it would warn."""
    extra = set(families) - set(mpl.rcParams["font.family"])
    bold = all(map(_has_bold, extra))
    return {"fontfamily": families, "fontweight": weight if bold else "normal"}


@cache
def _has_bold(family: str) -> bool:
    weights = (entry.weight for entry in font_manager.fontManager.ttflist if entry.name == family)
    return any(weight in ("bold", 700) for weight in weights)


def lettering(text: str) -> tuple[str, list[str]]:
    """A text as it can be drawn, and the font families that draw it, for `font_options`.

    Control characters become spaces, bytes that are no text are spelt; what has no glyph of
    its own (joiners, variation selectors, skin tones) is dropped unless a font has it.
    """
    families = list(mpl.rcParams["font.family"])
    pieces = []
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Zl", "Zp"):
            pieces.append(" ")
        elif unicodedata.category(letter) == "Cs":  # a byte that is no text; fonts have a mere sign
            pieces.append(letter.encode("utf-8", "backslashreplace").decode())
        elif _usual_font_has(letter):
            pieces.append(letter)
        elif family := _family_with(letter):
            pieces.append(letter)
            families += [family] if family not in families else []
        else:
            pieces.append(_spell(letter))
    return "".join(pieces), families


def announce_spelling() -> None:
    """Tell which letters no font of this machine has, each once; silent where there are none."""
    new = sorted(_spelt - _announced)
    if new:
        some = ", ".join(f"{letter} as {_spell(letter)}" for letter in new[:3])
        console.print(
            f"no font here has {len(new)} letter(s) of these names, so the PNG figures spell them: "
            f"{some} (the page shows them); a font such as Noto Sans CJK would draw them",
            markup=False,
            highlight=False,
        )
        _announced.update(new)


def _usual_font_has(letter: str) -> bool:
    return any(_has(path, letter) for path in _usual_fonts(tuple(mpl.rcParams["font.family"])))


@cache
def _usual_fonts(families: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(str(font_manager.findfont(FontProperties(family=[f]))) for f in families)


def _has(path: str, letter: str) -> bool:
    if "\ud800" <= letter <= "\udfff":  # half a character: no font has it
        return False
    # a damaged font, or one of bitmaps only
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        return bool(font_manager.get_font(path).get_char_index(ord(letter)))
    return False


@cache
def _family_with(letter: str) -> str | None:
    """The first family of the machine that has a letter and draws it."""
    for family, path in _families():
        if _has(path, letter):
            font = font_manager.get_font(path)
            with contextlib.suppress(RuntimeError, OSError, ValueError):
                font.set_size(10, 72)
                font.load_char(ord(letter))
                return family
    return None


@cache
def _families() -> tuple[tuple[str, str], ...]:
    """Every usable family with its most regular file, preferred ones first."""
    return tuple(sorted(_all_families(), key=lambda pair: _rank(pair[0])))


def _rank(family: str) -> int:
    return PREFERRED.index(family) if family in PREFERRED else len(PREFERRED)


def _all_families() -> Iterator[tuple[str, str]]:
    manager = font_manager.fontManager
    known = {str(entry.fname) for entry in manager.ttflist}
    for path in font_manager.findSystemFonts():  # matplotlib's list is older than new fonts
        if path not in known:
            with contextlib.suppress(RuntimeError, OSError, ValueError):
                manager.addfont(path)
    files: dict[str, tuple[int, str]] = {}
    for entry in manager.ttflist:
        if any(part in entry.name.lower() for part in UNUSABLE):
            continue
        weight = entry.weight if isinstance(entry.weight, int) else 400
        oddness = abs(weight - 400) + (0 if entry.style == "normal" else 1000)
        if entry.name not in files or oddness < files[entry.name][0]:
            files[entry.name] = (oddness, str(entry.fname))
    for family, (_, path) in files.items():
        yield family, path


@cache
def _spell(letter: str) -> str:
    """A letter in letters that the usual font has."""
    if "\ud800" <= letter <= "\udfff":
        return "\N{REPLACEMENT CHARACTER}"
    name = unicodedata.name(letter, "")
    if unicodedata.category(letter) in ("Cf", "Mn", "Me") or name.startswith("EMOJI MODIFIER"):
        return ""
    plain = unicodedata.normalize("NFKD", letter)
    if plain != letter and all(map(_usual_font_has, plain)):
        return plain
    _spelt.add(letter)
    words = name.split()
    if {"LETTER", "SYLLABLE", "VOWEL", "CHARACTER", "DIGIT"} & set(words):
        return words[-1].lower()
    if name and unicodedata.category(letter) in ("So", "Sm", "Sk", "Sc", "Po", "No"):
        return f"[{name.lower()}]"
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
