"""How a run gets its settings: defaults < YAML file < `--a.b value` flags. An unknown key is an error that names the nearest."""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro
import yaml

from fiag_dist.errors import ConfigError, meant
from fiag_dist.storage import open_storage

T = TypeVar("T")


def load(cls: type[T], argv: Sequence[str] | None = None, prog: str | None = None) -> T:
    """Builds `cls` from an optional leading YAML path and flags. Raises ConfigError; `--help` prints every setting and exits."""
    args = list(sys.argv[1:] if argv is None else argv)
    default = from_yaml(cls, args.pop(0)) if args and not args[0].startswith("-") else cls()
    return tyro.cli(
        cls, default=default, args=args, prog=prog, description=f"{cls.__doc__} First argument, optional: a YAML file."
    )


def from_yaml(cls: type[T], path: str | Path) -> T:
    """Reads one of configs/*.yaml, or a run's config.yaml, on S3 too.

    Raises ConfigError for a missing file, an unknown key (names the nearest) or a wrong type.
    """
    if str(path).startswith("s3://"):
        folder, _, name = str(path).rpartition("/")
        return _from_text(cls, open_storage(folder).read(name).decode("utf-8", "replace"), str(path))
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"config {path}: can't be read ({reason}); check its rights, or save it as UTF-8") from error
    if text is None:
        near = difflib.get_close_matches(path.name, [p.name for p in Path("configs").glob("*.yaml")], 1)
        raise ConfigError(
            f"config {path}: no such file"
            + (f"; did you mean configs/{near[0]}?" if near else "; give one like those in configs/")
        )
    return _from_text(cls, text, str(path))


def _from_text(cls: type[T], text: str, where: str) -> T:
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"config {where}: not valid YAML: {' '.join(str(error).split())}") from error
    return from_dict(cls, tree, where)


def from_dict(cls: type[T], tree: Any, where: str = "config") -> T:
    """Fills the dataclass `cls` from nested dicts, strictly. `where` names the source in errors. Raises ConfigError."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, got {tree!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    base = cls()
    values = {}
    for key, value in tree.items():
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}; {meant(str(key), names)}")
        values[key] = _convert(hints[key], value, f"{where}: {key}", getattr(base, key))
    return dataclasses.replace(base, **values)  # type: ignore[type-var]


def to_dict(config: Any) -> dict:
    """Nested dicts of plain values: what `from_dict` reads back."""
    return {
        k: list(v) if isinstance(v, tuple) else to_dict(v) if isinstance(v, dict) else v
        for k, v in _plain(config).items()
    }


def to_yaml(config: Any, command: str) -> str:
    """YAML that `from_yaml` reads back, with the command that runs it in its first line."""
    return f"# {command}\n" + yaml.safe_dump(to_dict(config), sort_keys=False)


def changes(before: dict, now: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """What differs between two trees of `to_dict`: dotted name -> (before, now). A setting that only one of them knows is left out."""
    found = {}
    for key in [key for key in now if key in before]:
        old, new = before[key], now[key]
        if isinstance(old, dict) and isinstance(new, dict):
            found |= changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found[f"{prefix}{key}"] = (old, new)
    return found


def _plain(config: Any) -> dict:
    return config if isinstance(config, dict) else dataclasses.asdict(config)


def _convert(hint: Any, value: Any, where: str, base: Any) -> Any:
    """`value` as `hint` says; a nested dataclass keeps `base` where the file is silent."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        merged = _merge(dataclasses.asdict(base), value) if isinstance(value, dict) else value
        from_dict(hint, value, where)  # names the unknown key before defaults hide it
        return from_dict(hint, merged, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}")
        return tuple(_convert(k, v, where, None) for k, v in zip(kinds, value, strict=True))
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(args[0], value, where, base)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-4 as text
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")


def _merge(base: dict, over: dict) -> dict:
    return base | {
        k: _merge(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in over.items()
    }
