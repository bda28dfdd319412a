"""IBM's client, for the tests that use it: it takes two seconds to load."""

import warnings


def loaded():
    """The package, loaded without what its dependencies warn of meanwhile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import qiskit_ibm_runtime.executor_sampler
        import qiskit_ibm_runtime.fake_provider
    return qiskit_ibm_runtime


def fake_manila():
    """The client's own description of a device of five qubits."""
    return loaded().fake_provider.FakeManilaV2()
