"""Strict YAML -> frozen dataclasses: an unknown key or a wrong type stops the run and is named.

A configuration comes with the package and has a name, or is the user's own YAML file. Its key
`base` names another one, whose keys it has where it does not set them itself.
"""

import dataclasses
import os
import reprlib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from photozhpc.errors import ConfigError, did_you_mean, one_line

T = TypeVar("T")
Kind = typing.Literal["survey", "recipe", "site", "sky"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)
_FOLDER = Path(__file__).parent / "configs"
# Names begin below the first of the two: small/pita, but sky/simple.
_BUNDLED = {
    "survey": (_FOLDER / "surveys", "*.yaml"),
    "recipe": (_FOLDER / "train", "**/*.yaml"),
    "site": (_FOLDER / "sites", "*.yaml"),
    "sky": (_FOLDER, "sky/*.yaml"),
}


def bundled_configs(*kinds: Kind) -> dict[str, Path]:
    """Return the package's configurations of these kinds: name -> path, sorted."""
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder, pattern in (_BUNDLED[kind] for kind in kinds)
        for path in sorted(folder.glob(pattern))
    }


def config_path(name_or_path: str | Path, *kinds: Kind) -> Path:
    """Return the path of the bundled configuration of this name, or else the path itself.

    What ends in .yaml or .yml, or is an existing file, counts as a path.

    Raises:
        ConfigError: it is neither a name of one of the `kinds` nor a path; the nearest name is
            suggested.
    """
    text, bundled = str(name_or_path), bundled_configs(*kinds)
    if text in bundled:
        return bundled[text]
    if text.endswith((".yaml", ".yml")) or (os.path.exists(text) and not os.path.isdir(text)):
        return Path(text)
    kind = kinds[0] if len(kinds) == 1 else "configuration"
    raise ConfigError(f"unknown {kind} '{text}'{did_you_mean(text, bundled)}; or pass a YAML file")


def read_config(cls: type[T], name_or_path: str | Path, kind: Kind) -> T:
    """Read a configuration by its name or path (see `config_path`) and check every key.

    Raises:
        ConfigError: it does not exist or is faulty.
    """
    path = config_path(name_or_path, kind)
    return from_mapping(cls, load_yaml(path), str(path))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping, and that of its `base`, with the safe loader (which makes no objects).

    The base is the name of a bundled configuration, or a path relative to the file. What the file
    says replaces what the base says, key by key; lists are replaced as a whole.

    Raises:
        ConfigError: a file is missing, is not YAML, is not a mapping, or is its own base.
    """
    return _load_yaml(Path(path), ())


def on_base(mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a mapping with the keys of its `base`, as `load_yaml` does.

    Args:
        where: what it is, for messages.

    Raises:
        ConfigError: as `load_yaml`.
    """
    return _on_base(dict(mapping), where, Path(), ())


def _load_yaml(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    return _on_base(_load_one(path), str(path), path.parent, (*above, path.resolve()))


def _on_base(
    document: dict[str, Any], where: str, folder: Path, above: tuple[Path, ...]
) -> dict[str, Any]:
    if "base" not in document:
        return document
    base = document.pop("base")
    if not isinstance(base, str):
        raise ConfigError(f"{where}: base: expected a name or a path, got {_shown(base)}")
    bundled = bundled_configs(*KINDS)
    try:
        below = bundled[base] if base in bundled else folder / config_path(base, *KINDS)
    except ConfigError as error:
        raise ConfigError(f"{where}: base: {error}") from None
    if below.resolve() in above:
        raise ConfigError(f"{where}: base: '{base}' is based on this file")
    return _merged(_load_yaml(below, above), document)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merged(typing.cast(Any, old), value) if both else value
    return merged


def _load_one(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            document = yaml.safe_load(stream)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except Exception as error:  # constructors of YAML's types let any exception through
        raise ConfigError(f"{path}: not valid YAML ({one_line(error)})") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got {type(document).__name__}")
    return document


def from_mapping(cls: type[T], mapping: Any, where: str) -> T:
    """Build the frozen dataclass `cls` from a mapping, checking every key and type.

    Args:
        cls: a dataclass; fields may be scalars, tuples, dicts, unions with None, dataclasses.
        mapping: content of the YAML or JSON file.
        where: for errors: the file and the path of keys so far.

    Raises:
        ConfigError: unknown key (the nearest valid one is named), missing key, wrong type.
    """
    if not isinstance(mapping, dict):
        raise ConfigError(f"{where}: expected 'key: value' pairs, got {_shown(mapping)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key '{key}'{did_you_mean(str(key), fields)}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, field in fields.items():
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: the key '{name}' is missing")
    try:
        return cls(**values)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}") from error


def to_mapping(config: Any) -> Any:
    """Turn a config dataclass into plain dicts and lists, ready for YAML or JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: to_mapping(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_mapping(value) for value in config]
    return config


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    args = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [arg for arg in args if arg is not type(None)]
        if len(inner) > 1:  # one or several: str | tuple[str, ...]
            several = isinstance(value, list | tuple)
            inner = [arg for arg in inner if (typing.get_origin(arg) is tuple) == several]
            inner = [arg for arg in inner if type(value) is arg] or inner
        return _convert(inner[0], value, where)
    if origin is typing.Literal:
        if value not in args:
            near = did_you_mean(value if isinstance(value, str) else "", args)
            raise ConfigError(f"{where}: unknown choice {_shown(value)}{near}")
        return value
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {_shown(value)}")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected 'key: value' pairs, got {_shown(value)}")
        return {str(key): _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where}: the number is too large") from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    # YAML's aliases can make a list of lists that is short in the file and endless in print.
    text = reprlib.repr(value) if isinstance(value, list | tuple | dict | set) else str(value)
    return f"{text[:60]!r} ({type(value).__name__})"
