"""The options of a pool: what is valid, and what it means to Ray."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qailab.arguments import checked_integer
from qailab.backends.base import Backend
from qailab.distributed.actors import ACCOUNT_TOKEN
from qailab.errors import InputError, InputTypeError, PoolError
from qailab.launchers.launcher import meant_backend

Auto = Literal["auto"]
ActorOptions = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

START_SECONDS = 100.0
"""Machines and processes take 2 to 30 s; see also `supervisor.START_ROUNDS`."""
_OURS = {"concurrency_groups", "get_if_exists", "lifetime", "max_concurrency", "max_pending_calls",
         "max_restarts", "max_task_retries", "name", "namespace"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a pool schedules; `LauncherPool` says what the options mean.

    Raises:
        InputError: if one is not valid.
    """

    chunk_rows: int | Auto = "auto"
    max_in_flight: int | Auto = "auto"
    chunk_timeout: float | Auto = "auto"
    start_timeout: float = START_SECONDS
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("chunk_rows", "max_in_flight"):
            if getattr(self, name) != "auto":
                checked_integer(name, getattr(self, name), hint=" or 'auto'")
        for name, hint in (("chunk_timeout", " or 'auto'"), ("start_timeout", "")):
            value = getattr(self, name)
            wrong = f"{name} must be a positive number of seconds{hint}, got {value!r}"
            if hint and value == "auto":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InputTypeError(wrong)
            if not 0 < value < float("inf"):
                raise InputError(wrong)
        if not isinstance(self.progress, bool):
            raise InputTypeError(f"progress must be True or False, got {self.progress!r}")


def checked_backends(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Return the backends.

    Raises:
        InputError: if there are none, or one is no backend.
    """
    if not isinstance(backends, Sequence):
        raise InputTypeError(
            f"backends must be a list of backends, got {backends!r}; write [AerBackend()] * 4"
        )
    if not backends:
        raise InputError("a pool needs at least one backend, got none")
    for place, backend in enumerate(backends):
        if not isinstance(backend, Backend):
            raise InputTypeError(
                f"backends[{place}] must be a qailab backend, got {backend!r}; write "
                f"{meant_backend(backend)}"
            )
    return tuple(backends)


def checked_actor_options(
    options: ActorOptions, backends: Sequence[Backend]
) -> tuple[dict[str, Any], ...]:
    """Return Ray's options for each backend's actor: its needs, and the user's overrides.

    Custom resources that backends ask for by themselves come later: `with_custom_needs`.

    Raises:
        InputError: if there are not as many as backends, or if one is not valid.
    """
    if options is None or isinstance(options, Mapping):
        each = [options or {}] * len(backends)
    elif isinstance(options, Sequence) and not isinstance(options, str):
        each = list(options)
    else:
        raise InputTypeError(
            "actor_options must be a mapping of Ray options for all actors, or a list of such "
            f"mappings, one for each; got {options!r}"
        )
    if len(each) != len(backends):
        raise InputError(
            f"actor_options must be one mapping, or one for each of {len(backends)} backends; got "
            f"{len(each)}"
        )
    return tuple(map(_for_actor, backends, each))


def _for_actor(backend: Backend, overrides: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(overrides, Mapping):
        raise InputTypeError(f"actor_options must hold mappings of Ray options, got {overrides!r}")
    if taken := sorted(_OURS & set(overrides)):
        raise InputError(
            f"actor_options must not set {', '.join(taken)}: the pool names, restarts and ends its "
            "actors itself"
        )
    cpus = overrides.get("num_cpus", 0)
    if isinstance(cpus, bool) or not isinstance(cpus, int | float) or cpus < 0:
        raise InputTypeError(f"actor_options['num_cpus'] must be a number of CPUs, got {cpus!r}")
    needs = backend.traits.resources
    if backend.traits.supports_exact and ACCOUNT_TOKEN in os.environ:
        # Set to nothing before the process starts: /proc shows what it was started with.
        given = overrides.get("runtime_env") or {}
        variables = {ACCOUNT_TOKEN: "", **given.get("env_vars", {})}
        overrides = {**overrides, "runtime_env": {**given, "env_vars": variables}}
    return {
        "num_cpus": needs.num_cpus,
        "num_gpus": needs.num_gpus,
        # A lost actor is replaced by the pool, which knows what it was doing; Ray's own restarts
        # and retries would run rows again behind its back.
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": backend.traits.max_concurrency,
        **overrides,
    }


def no_gpu(options: Sequence[Mapping[str, Any]], backends: Sequence[Backend]) -> PoolError | None:
    """Return the error of actors that ask for a GPU where none is; None if they do not."""
    for each, backend in zip(options, backends, strict=True):
        if each["num_gpus"]:
            return PoolError(
                f"{backend!r} asks for {each['num_gpus']:g} GPU, and no machine of this Ray has "
                "one; use device='CPU' and no num_gpus, or give address= of a cluster that has one"
            )
    return None


def custom_needs(
    options: Sequence[Mapping[str, Any]], backends: Sequence[Backend]
) -> dict[str, float]:
    """Return the custom resources that backends ask for by themselves, of all actors together."""
    total: dict[str, float] = {}
    for each, backend in zip(options, backends, strict=True):
        for name, amount in backend.traits.resources.custom.items():
            if "resources" not in each:
                total[name] = total.get(name, 0.0) + amount
    return total


def with_custom_needs(
    options: Sequence[Mapping[str, Any]], backends: Sequence[Backend], without: Collection[str]
) -> tuple[dict[str, Any], ...]:
    """Add what the backends ask for, where the user did not say; but not some resources."""
    custom = [backend.traits.resources.custom.items() for backend in backends]
    return tuple(
        {"resources": {name: amount for name, amount in items if name not in without}, **each}
        for items, each in zip(custom, options, strict=True)
    )


def needs_in_words(options: Mapping[str, Any]) -> str:
    """Say what an actor takes from its node, for messages."""
    custom = [f"{amount:g} {name}" for name, amount in (options["resources"] or {}).items()]
    return ", ".join([f"{options['num_cpus']:g} CPU", f"{options['num_gpus']:g} GPU", *custom])
