"""Classes from outside the package: `kind: package.module:Class` in place of a known kind.

`Foreign` in a union's annotation imports such a class, checks that it fits, and gives it the rest of the mapping; known
kinds are selected by pydantic's discriminator. An instance has the text as its `kind`. Its fingerprint contains the
class's version and a digest of the sources of its package, which is the same for a folder, a wheel or a zip.

A configuration that names a class is code: reading it imports the module. Validation with the context `{ALLOW_CODE:
False}` refuses such a kind before anything is imported. Without a context, Python code is the caller, and the kind is
accepted. Costs the import, and once per process the reading of the package's .py files.
"""

import functools
import hashlib
import importlib
import importlib.resources
import operator
import pkgutil
import sys
import traceback
import types
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any, ClassVar

from pydantic import GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from etl.config import Config, nearest
from etl.errors import ConfigError

ALLOW_CODE = "allow_code"
"""Key of the validation context: whether the configuration may name code from outside the package."""
_OURS = frozenset({"etl", "training"})


class Kinded(Config):
    """Base class of what a configuration selects by `kind`: a known word, or package.module:Class."""

    kind: str
    version: ClassVar[int] = 1
    """Increased when the same configuration and input would give another output."""
    purpose: ClassVar[str] = ""
    """What it is for: one sentence for the lists."""
    example: ClassVar[str] = ""
    """An example in YAML, as in a recipe."""

    @model_validator(mode="before")
    @classmethod
    def _kind_is_the_path(cls, values: Any) -> Any:
        """A class without a fixed kind is named by its path, so that Python code need not give it."""
        if isinstance(values, dict) and "kind" not in values and cls.model_fields["kind"].is_required():
            return {"kind": f"{cls.__module__}:{cls.__qualname__}", **values}
        return values

    def code(self) -> dict[str, Any]:
        """For a fingerprint: version and source digest of a class from outside the package, nothing for a known kind.

        Raises:
            ConfigError: the source of the class cannot be reached.
        """
        return {"version": self.version, "code": code_digest(type(self))} if ":" in self.kind else {}


class Foreign:
    """Annotation of a union of kinds that also accepts classes from outside the package.

        AnyStep = Annotated[AnswerStep | LanguageStep, Field(discriminator="kind"), Foreign(Step, "open")]

    Args:
        base: what a class must be derived from.
        defines: methods and attributes of the base that a class must define itself.
    """

    def __init__(self, base: type[Kinded], *defines: str) -> None:
        self.base = base
        self.defines = defines

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Each member serializes itself; the union would warn of a class that it does not list.
        return core_schema.with_info_wrap_validator_function(
            self._validated, handler(source), serialization=core_schema.simple_ser_schema("any")
        )

    def _validated(
        self, value: Any, known: core_schema.ValidatorFunctionWrapHandler, info: core_schema.ValidationInfo[Any]
    ) -> Any:
        if isinstance(value, self.base) and ":" in value.kind:
            return value
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or ":" not in kind:
            return known(value)
        try:
            if not allowed(info.context):
                raise ConfigError(refusal(kind))
            found = load(kind, self.base, self.defines)
        except ConfigError as error:
            said = PydanticCustomError("value_error", "{said}", {"said": str(error)})
            detail = InitErrorDetails(type=said, loc=("kind",), input=kind)
            raise ValidationError.from_exception_data(kind, [detail]) from error
        return found.model_validate(value, context=info.context)


def allowed(context: Mapping[str, Any] | None) -> bool:
    """Whether a configuration validated in this context may name code from outside the package."""
    return context is None or bool(context.get(ALLOW_CODE, True))


def refusal(kind: str) -> str:
    """The message about code that is not allowed."""
    return (
        f"{kind} is code from outside the package, which would run as soon as this configuration is read. The "
        "configuration, or a value of it, comes from a URI or from the files of a run; look at the code, then add "
        "--allow-code (or read the configuration from a local copy)"
    )


# --- the class ------------------------------------------------------------------------------------------------------


def load(kind: str, base: type[Kinded], defines: tuple[str, ...] = ()) -> type[Kinded]:
    """The class of a kind.

    Args:
        kind: package.module:Class.
        base: what the class must be derived from.
        defines: methods and attributes of the base that it must define itself.

    Raises:
        ConfigError: it cannot be imported, is not such a class, lacks a part, or its source cannot be read.
    """
    module, _, name = kind.partition(":")
    if not all(word.isidentifier() for word in (*module.split("."), *name.split("."))):
        raise ConfigError(f"'{kind}' is not of the form package.module:Class, e.g. acme_filters.answers:LongAnswers")
    found = _attribute(_imported(module), name, base)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{kind} is {_what(found)}, not {_a(base)}; derive it from {_path(base)}")
    _check_is_whole(kind, found, base, defines)
    code_digest(found)
    return found


def _imported(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        (*_, last) = traceback.extract_tb(error.__traceback__)
        where = "" if isinstance(error, ModuleNotFoundError) else f" at {last.filename}:{last.lineno}"
        raise ConfigError(
            f"module {name} cannot be imported ({type(error).__name__}: {error}{where}); install it, put its folder on "
            "PYTHONPATH, or ship it by Spark's --py-files"
        ) from error


def _attribute(module: types.ModuleType, name: str, base: type[Kinded]) -> Any:
    try:
        return operator.attrgetter(name)(module)
    except AttributeError as error:
        there = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        fitting = sorted(key for key in there if vars(module)[key] is not base)
        known = f"{nearest(name, fitting)}there: {', '.join(fitting)}" if fitting else f"it has no {base.__name__}"
        raise ConfigError(f"module {module.__name__} has no class '{name}'; {known}") from error


def _what(found: Any) -> str:
    """Describe a value that should have been a subclass."""
    if not isinstance(found, type):
        names = {types.FunctionType: "a function", types.ModuleType: "a module"}
        return names.get(type(found), f"a value of type {type(found).__name__}")
    bases = [cls for cls in found.__mro__ if Kinded in cls.__bases__]
    return _a(bases[0]) if bases else "a class of another kind"


def _check_is_whole(kind: str, found: type[Kinded], base: type[Kinded], defines: tuple[str, ...]) -> None:
    lacks = [name for name in defines if getattr(found, name, None) is getattr(base, name, None)]
    lacks += sorted(getattr(found, "__abstractmethods__", frozenset()) - set(lacks))
    if lacks:
        raise ConfigError(f"{kind} does not define {', '.join(lacks)}, which {_a(base)} needs; add that")
    field = found.model_fields["kind"]
    if field.annotation is not str:
        known = found.__module__.partition(".")[0] in _OURS
        remedy = f"write `kind: {field.default}`" if known else "add the line `kind: str` to the class"
        raise ConfigError(f"the class {kind} calls its kind '{field.default}'; {remedy}")


def _a(cls: type) -> str:
    return f"{'an' if cls.__name__[0] in 'AEIOU' else 'a'} {cls.__name__}"


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# --- its source -----------------------------------------------------------------------------------------------------


def code_digest(cls: type) -> str:
    """SHA-256 over names and bytes of all .py files of the top-level package of a class, or of its single module.

    Raises:
        ConfigError: the source cannot be read, or the package has no __init__.py that defines what belongs to it.
    """
    name = cls.__module__
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if name == "__main__" or spec is None or not (spec.origin or "").endswith(".py"):
        raise ConfigError(
            f"the source of {_path(cls)} cannot be read (it is compiled, interactive or the main program), so a "
            "change to it would go unnoticed; put the class into a .py file of an imported package"
        )
    return _digest(_owner(cls))


def _owner(cls: type) -> types.ModuleType:
    """The outermost package with an __init__.py that contains a class, or its single module."""
    words = cls.__module__.split(".")
    outwards = [sys.modules[".".join(words[:count])] for count in range(1, len(words) + 1)]
    owner = next(module for module in outwards if module.__spec__ is not None and module.__spec__.origin is not None)
    if owner is not outwards[0] and not hasattr(owner, "__path__"):
        raise ConfigError(
            f"{'.'.join(words[:-1])} has no __init__.py, so it is unknown which files belong to {_path(cls)}; add an "
            "empty one"
        )
    return owner


@functools.cache
def _digest(owner: types.ModuleType) -> str:
    lines = [f"{name}\0{hashlib.sha256(text).hexdigest()}\n" for name, text in sorted(_sources(owner))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sources(owner: types.ModuleType) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each source file."""
    root = owner.__name__.replace(".", "/")
    if hasattr(owner, "__path__"):
        yield from _below(importlib.resources.files(owner), root)
        return
    text = pkgutil.get_data(owner.__name__, f"{owner.__name__}.py")
    assert text is not None, "code_digest looked for a .py file"
    yield f"{root}.py", text


def _below(folder: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for item in folder.iterdir():
        path = f"{name}/{item.name}"
        if item.is_dir():
            yield from _below(item, path)
        elif path.endswith(".py"):
            yield path, item.read_bytes()
