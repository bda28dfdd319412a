"""Files that are secrets, by their names and by what is in them."""

from __future__ import annotations

import re

_STEMS = ("token", "secret", "secrets", "password", "passwords", "credentials")
_KINDS = ("json", "txt", "toml", "yaml", "yml", "ini", "cfg")

FILES = (
    ".env", ".env[._-]*", "*.env", ".envrc", "!.env.example", "!.env.template", "*.pem", "*.key",
    "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keytab", "*.kdbx", "*.token", "*.tfvars",
    "*.tfstate*", "*.kubeconfig", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
    *(f"{stem}.{kind}" for stem in _STEMS for kind in _KINDS),
    "auth_token*", "token", "ibm_token*", "apikey*.json", "apikey*.txt", "api_key*.json",
    "api_key*.txt", "password*.txt", ".secret", ".secrets", "secrets/", "credentials",
    "*_credentials", "*_credentials.json", "client_secret*.json", "service-account*.json",
    "service_account*.json", "gcp-key*.json", "gcp_key*.json", "qiskit-ibm*.json", "qiskitrc",
    "kaggle.json", "kubeconfig",
    ".netrc", "_netrc", ".pypirc", ".npmrc", ".pgpass", ".htpasswd", ".git-credentials",
    ".my.cnf", ".s3cfg", ".boto", ".dockercfg", ".vault-token", ".vault_pass*", "pip.conf",
    ".bash_history", ".zsh_history", ".python_history",
    ".aws/", ".ssh/", ".ray/", ".qiskit/", ".kube/", ".gnupg/", ".azure/", ".docker/",
    ".huggingface/", ".config/gcloud/", ".config/gh/",
    "!*.py",  # programs have to go: of them, only what is in them counts
)  # fmt: skip
"""Names, as patterns of .gitignore, in small letters: names are compared without regard to case."""

# Whole ones only: a regular expression like these, or the beginning of an example, is no secret.
_CONTENT = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:\\[nr]|\s)+(?:[A-Z][\w-]+:[^\n]*\n\s*)*[A-Za-z0-9+/]{40}"
    rb"|(?<![A-Za-z0-9_])gh[pousr]_(?!x+\b)[A-Za-z0-9_]{36}(?![A-Za-z0-9_])"
    rb"|(?<![A-Za-z0-9])AKIA(?![A-Z0-9]*EXAMPLE)[A-Z0-9]{16}(?![A-Za-z0-9])"
)


def has_secret(content: bytes) -> bool:
    """Whether there is a private key, or a token of GitHub or AWS, in a file."""
    return _CONTENT.search(content) is not None
