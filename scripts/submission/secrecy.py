"""What must not travel with a job: Ray shows its runtime environment, and logs, to everybody.

`looks_secret` judges a variable by its name and its value, `FILES` names files, and `Known` finds
the very secrets of this account (Ray's token, the IBM account) wherever they are about to go. No
message holds a value.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qailab.errors import InputError

FILES = (
    ".env", ".env.*", "*.env", "!.env.example", "!.env.template", "*.pem", "*.key", "*.p12",
    "*.pfx", "*.jks", "*.keytab", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
    "auth_token", "auth_token.txt", "*.token", "qiskit-ibm.json", "credentials",
    "credentials.json", ".netrc", ".pypirc", ".npmrc", ".pgpass", ".htpasswd", ".git-credentials",
    "kubeconfig", "*.kubeconfig", "*.tfstate*",
    "secret.json", "secrets.json", "secret.txt", "secrets.txt", "secrets.toml",
    ".aws/", ".ssh/", ".ray/", ".qiskit/", ".kube/", ".gnupg/", ".azure/", ".config/gcloud/",
)  # fmt: skip
"""Files that look like secrets, as patterns of .gitignore."""

INSTEAD = """\
Ray shows the environment of a job to everybody who sees its dashboard, and writes it to its logs.
Put secrets on the nodes instead, where the job's actors find them:
  - in the environment of `ray start` on the nodes that need them (systemd, docker --env-file);
  - an IBM account: saved there once with QiskitRuntimeService.save_account(), or its file
    ~/.qiskit/qiskit-ibm.json, readable by its owner only;
  - on Kubernetes: a Secret, mounted as that file or named in secretKeyRef (see cluster/)."""

_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW(OR)?D|PASSPHRASE|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL"
    r"|(^|_)(PWD|PASS|APIKEY|AUTH)$",
    re.IGNORECASE,
)
_PLACE = re.compile(r"_(FILE|PATH|DIR)$|^GOOGLE_APPLICATION_CREDENTIALS$|^(OLD)?PWD$")
_VALUE = re.compile(
    r"-----BEGIN |^(ghp|gho|ghs|github_pat|glpat|hf|sk|xox[abp])[-_]\w{16,}"
    r"|^(AKIA|ASIA)[A-Z0-9]{16}|^eyJ[\w-]{10,}\.|://[^/@\s:]+:[^/@\s]+@"
)
_PIECES = re.compile(r"[^A-Za-z0-9+_-]+")
_MANY_CHARACTERS = 24  # IBM's keys have 44, AWS's 40, Ray's tokens 64, a long word 20
_MANY_BITS = 3.3  # a character; hexadecimal digits have at most 4, words of a language below 3.2
_ENOUGH_TO_KNOW = 12  # characters: a shorter value is found by chance


def looks_secret(name: str, value: str) -> str | None:
    """Why this variable must not go; None if it may."""
    if _NAME.search(name) and not (_PLACE.search(name) and value.startswith(("/", "~"))):
        return "its name is that of a secret"
    if _VALUE.search(value):
        return "its value has the form of a key, or a password in an address"
    if any(map(_is_random, _PIECES.split(value))):
        return "its value is long and random, as keys are"
    return None


def _is_random(text: str) -> bool:
    kinds = [any(map(test, text)) for test in (str.isdigit, str.isalpha)]
    if len(text) < _MANY_CHARACTERS or not all(kinds):
        return False
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares) >= _MANY_BITS


def check_environment(variables: Mapping[str, str]) -> None:
    """Refuse an environment that has secrets.

    Raises:
        InputError: if it has; it names the variables and says where they belong.
    """
    found = {name: looks_secret(name, value) for name, value in variables.items()}
    refused = [f"  {name}: {why}" for name, why in found.items() if why]
    if refused:
        raise InputError(
            "not sent, because these variables look like secrets:\n"
            + "\n".join(refused)
            + f"\n{INSTEAD}"
        )


_OPTION = re.compile(r"--?([A-Za-z][\w-]*)(=|$)")


def check_entrypoint(words: Iterable[str]) -> None:
    """Refuse a command line that has secrets: it is in the job's record and its log.

    Raises:
        InputError: if an option's name is that of a secret, or a word has the form of one.
    """
    for word in words:
        option = _OPTION.match(word)
        name = option[1].replace("-", "_").upper() if option else ""
        # Not whether it is random: the name of a run may be.
        if _VALUE.search(word) or (_NAME.search(name) and not _PLACE.search(name)):
            shown = f"--{option[1]}" if option else "an argument"
            raise InputError(f"not sent, because {shown} looks like a secret.\n{INSTEAD}")


@dataclass(frozen=True)
class Known:
    """The secrets of this account, to be found wherever they are about to go.

    Args:
        secrets: where each value comes from, by value.
    """

    secrets: Mapping[str, str] = field(repr=False)

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Known:
        """Those of the environment, of Ray's token files, and of saved IBM accounts."""
        found = {
            value.strip(): name
            for name, value in environment.items()
            if _NAME.search(name) and not _PLACE.search(name)
        }
        for path in (environment.get("RAY_AUTH_TOKEN_PATH"), "~/.ray/auth_token"):
            text = _read(path)
            found |= {text: str(path)} if text else {}
        saved = "~/.qiskit/qiskit-ibm.json"
        try:
            accounts = json.loads(_read(saved) or "{}").values()
            found |= {str(one["token"]): saved for one in accounts if "token" in one}
        except (ValueError, TypeError, AttributeError):  # not a file of the IBM client
            pass
        return cls({k: v for k, v in found.items() if len(k) >= _ENOUGH_TO_KNOW})

    def check(self, what: str, content: str | bytes) -> None:
        """Refuse content that has one of these secrets.

        Raises:
            InputError: if it has; it says which, and never the value.
        """
        data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        for value, source in self.secrets.items():
            if value.encode(errors="surrogateescape") in data:
                raise InputError(f"not sent: {what} has the secret of {source} in it.\n{INSTEAD}")


def _read(path: str | None) -> str:
    try:
        return Path(path).expanduser().read_text().strip() if path else ""
    except (OSError, ValueError):
        return ""
