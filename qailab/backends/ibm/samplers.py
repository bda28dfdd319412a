"""The Sampler of the installed client: the one on the client's side where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from qailab.errors import InputError

Kind = Literal["client", "server"]


def installed_kind() -> Kind:
    """Which Sampler to use: IBM replaces the server's by the client's (0.50 and later)."""
    try:
        import qiskit_ibm_runtime.executor_sampler  # noqa: F401
    except ImportError:
        return "server"
    return "client"


def make_sampler(kind: Kind, mode: Any, options: Mapping[str, Any]) -> Any:
    """A Sampler.

    Args:
        kind: which of the two.
        mode: a backend, session or batch of the client.
        options: its options, as nested mappings.
    """
    if kind == "client":
        from qiskit_ibm_runtime.executor_sampler import Sampler

        return Sampler(mode=mode, options=dict(options))
    import warnings

    from qiskit_ibm_runtime import SamplerV2

    with warnings.catch_warnings():
        # Where this one is chosen, the client has no other, or a user asks for it.
        warnings.simplefilter("ignore", DeprecationWarning)
        return SamplerV2(mode=mode, options=dict(options))


def check_options(kind: Kind, options: Mapping[str, Any]) -> None:
    """Raise an error if the Sampler does not know these options.

    Raises:
        InputError: with what the Sampler says about them.
    """
    try:
        if kind == "client":
            from qiskit_ibm_runtime.options_models.sampler import SamplerOptions

            SamplerOptions(**options)
        else:
            from qiskit_ibm_runtime.options import SamplerOptions as ServerOptions

            ServerOptions(**options)
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"options are not valid for IBM's Sampler: {said} (known are those of SamplerOptions: "
            "https://quantum.cloud.ibm.com/docs/api/qiskit-ibm-runtime/options-sampler-options)"
        ) from error


def merged(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Options with more of them, nested ones as well; lists are joined."""
    together = dict(options)
    for name, value in more.items():
        known = together.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            together[name] = merged(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            together[name] = [*known, *value]
        else:
            together[name] = value
    return together
