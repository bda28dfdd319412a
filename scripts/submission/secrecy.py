"""What must not travel with a job: Ray shows its runtime environment, and logs, to everybody.

`looks_secret` judges a variable by its name and its value, `check_entrypoint` a command line, and
`Known` finds the very secrets of this account (Ray's token, the IBM account) wherever they are
about to go. No message holds a value.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qailab.errors import InputError

INSTEAD = """\
Ray shows the environment of a job to everybody who sees its dashboard, and writes it to its logs.
Put secrets on the nodes instead, where the job's actors find them:
  - in the environment of `ray start` on the nodes that need them (systemd, docker --env-file);
  - an IBM account: saved there once with QiskitRuntimeService.save_account(), or its file
    ~/.qiskit/qiskit-ibm.json, readable by its owner only;
  - on Kubernetes: a Secret, mounted as that file or named in secretKeyRef (see cluster/)."""
_ALLOW = "What is none, although it looks so: --allow-env NAME lets it go."

_PASSWORD = (
    r"PASSW(OR)?D|PASSPHRASE|SECRET|CREDENTIAL|(^|_)(PWD|PASS|PW)$"
    r"|(DB|SSH|SQL|PG|USER|ADMIN|ROOT|SMTP|MAIL|FTP|REDIS|MONGO|LDAP|VAULT|SUDO)(PASS|PWD|PW)$"
)
_OTHERS = (
    r"TOKEN(?!IZER)|(API|ACCESS|PRIVATE|ACCOUNT|SHARED|SIGNING|ENCRYPTION|MASTER|SSH)_?KEY"
    r"|(^|_)(KEY|APIKEY|AUTH|PAT|COOKIES?|BEARER|AUTHORIZATION|JWT|SIG|SIGNATURE)$"
)
_NAME = re.compile(f"{_PASSWORD}|{_OTHERS}", re.IGNORECASE)
_HIDDEN_NUMBER = re.compile(_PASSWORD, re.IGNORECASE)  # of others, a number is a count
_NOT_ONE = re.compile(r"|-?\d+(\.\d+)?|true|false|yes|no|on|off|none|null", re.IGNORECASE)
_PLACE = re.compile(r"_(FILE|PATH|DIR)$|^GOOGLE_APPLICATION_CREDENTIALS$|^(OLD)?PWD$")
_IS_PLACE = re.compile(r"(~|\.\.?)?/|[\w.-]+(/[\w.-]+)*\.[a-z]{1,5}$")

_VALUE = re.compile(
    r"-----BEGIN |(?<!\w)(?:gh[opsur]|hf|sk)[-_][A-Za-z0-9]{16,}"
    r"|(?<!\w)(?:github_pat_|glpat-|pypi-)[\w-]{16,}"
    r"|(?<!\w)(?:sk-(?:ant|proj|or)-|[rsp]k_(?:live|test)_|xox[a-z]-)[\w-]{8,}"
    r"|(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}|(?<!\w)eyJ[\w-]{5,}\."
    r"|://[^/@\s:]*:[^/@\s]+@|\bBearer\s+\S{3}|^Basic [A-Za-z0-9+/]{8,}=*$"
    r"|hooks\.slack\.com/[a-z]+/\w|discord(?:app)?\.com/api/webhooks/\w"
)
# NAME=value, name: value, "name": "value", also in addresses, connection strings and other values.
_PAIR = re.compile(r"([A-Za-z_][\w.-]*)['\"]?\s*[=:]\s*['\"]?(?=([^\s;&,'\"]*))")

# Random, or nearly so, and no secrets: ids, hashes of git and of images, names of runs, files.
_KNOWN_FORMS = re.compile(
    r"^crn:[\w:./-]+$|(?<![0-9a-f])[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])"
    r"|(?<![0-9a-z])[0-9a-f]{40}(?![0-9a-z])|sha256:[0-9a-f]{64}"
    r"|[\w.]+-\d{8}-\d{6}(-[0-9a-f]{4,8})?(?!\w)"
    r"|^((~|\.\.?)?/|(s3|gs|gcs|az|abfss?|hdfs|file)://)[\w./@:-]*$"
)
_PIECES = re.compile(r"[^A-Za-z0-9+_-]+")
_MANY_CHARACTERS = 24  # IBM's keys have 44, AWS's 40, Ray's tokens 64, a long word 20
_MANY_BITS = 3.3  # a character; hexadecimal digits have at most 4, words of a language below 3.2
_ENOUGH_TO_KNOW = 12  # characters: a shorter value is found by chance


def looks_secret(name: str, value: str) -> str | None:
    """Why this variable must not go; None if it may."""
    if _is_named(name, value):
        return "its name is that of a secret"
    if _VALUE.search(value):
        return "its value has the form of a key, or a password in an address"
    if any(_is_named(*pair) for pair in _pairs(value)):
        return "its value has a part whose name is that of a secret"
    if any(map(_is_random, _PIECES.split(_KNOWN_FORMS.sub(" ", value)))):
        return "its value is long and random, as keys are"
    return None


def _is_named(name: str, value: str) -> bool:
    """Whether a name is that of a secret, and the value can be one."""
    plain = re.sub(r"[-.]", "_", name.lstrip("-")).upper()
    if not _NAME.search(plain) or (_PLACE.search(plain) and _IS_PLACE.match(value)):
        return False
    if not value or _HIDDEN_NUMBER.search(plain):
        return bool(value)
    return not _NOT_ONE.fullmatch(value)


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    return ((found[1], found[2]) for found in _PAIR.finditer(text))


def _is_random(text: str) -> bool:
    kinds = [any(map(test, text)) for test in (str.isdigit, str.isalpha)]
    if len(text) < _MANY_CHARACTERS or not all(kinds):
        return False
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares) >= _MANY_BITS


def check_environment(variables: Mapping[str, str], allowed: Container[str] = ()) -> None:
    """Refuse an environment that has secrets.

    Args:
        variables: values by name.
        allowed: names of what may go.

    Raises:
        InputError: if it has; it names the variables and says where they belong.
    """
    found = {k: looks_secret(k, value) for k, value in variables.items() if k not in allowed}
    refused = [f"  {name}: {why}" for name, why in found.items() if why]
    if refused:
        raise InputError(
            "not sent, because these variables look like secrets:\n"
            + "\n".join(refused)
            + f"\n{INSTEAD}\n{_ALLOW}"
        )


def check_entrypoint(words: Iterable[str], allowed: Container[str] = ()) -> None:
    """Refuse a command line that has secrets: it is in the job's record and its log.

    Args:
        words: the program and its arguments.
        allowed: names of options and variables that may have any value.

    Raises:
        InputError: if an option or a variable in it has the name of a secret, or something has the
            form of one. Not if it is random: the name of a run may be.
    """
    words = list(words)
    for word, after in zip(words, [*words[1:], "-"], strict=True):
        option = re.match(r"--?([A-Za-z][\w-]*)(=|$)", word)
        pairs = list(_pairs(word))
        if option and not option[2] and not after.startswith("-"):
            pairs.append((option[1], after))
        found = [name for name, value in pairs if _is_named(name, value)]
        if _VALUE.search(word):
            found.append(option[1] if option else word.partition("=")[0])
        for name in found:
            if name not in allowed:
                # Only what certainly is a name: a password may well be before a colon.
                told = option and option[1] == name and not _VALUE.search(name)
                raise InputError(
                    f"not sent, because {f'--{name}' if told else 'an argument'} looks like a "
                    f"secret.\n{INSTEAD}\n{_ALLOW}"
                )


@dataclass(frozen=True)
class Known:
    """The secrets of this account, to be found wherever they are about to go.

    Args:
        secrets: where each value comes from, by value.
    """

    secrets: Mapping[str, str] = field(repr=False)

    @classmethod
    def here(
        cls, environment: Mapping[str, str] = os.environ, allowed: Container[str] = ()
    ) -> Known:
        """Those of the environment, of Ray's token files, and of saved IBM accounts."""
        found = {
            value.strip(): name
            for name, value in environment.items()
            if name not in allowed and _is_named(name, value)
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


def check_requirements(lines: Iterable[str], known: Known) -> None:
    """Refuse requirements that have secrets: they are in the job's runtime environment.

    Raises:
        InputError: if one has a password or a key in its address.
    """
    for line in lines:
        package = re.split(r"[^\w.-]", line)[0]
        known.check(f"the requirement {package}", line)
        if _VALUE.search(line):
            raise InputError(
                f"not sent: the requirement {package} has a password or a key in its address. "
                f"Install it on the nodes instead.\n{INSTEAD}"
            )


def _read(path: str | None) -> str:
    try:
        return Path(path).expanduser().read_text().strip() if path else ""
    except (OSError, ValueError):
        return ""
