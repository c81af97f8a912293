"""Content Credentials (C2PA): a signed statement inside a video, which other programs can verify. The only file that imports c2pa."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from fiag_dist.errors import ConfigError, DataError

HINT = "bash launch/install.sh ingest,sign"
_STATED = ("identity", "identity_sha256", "checkpoint", "consent")


class Credentials:
    """Who signs: a chain of certificates and the private key of its first. Nothing is asked of the network."""

    def __init__(self, certificates: Path, key: Path):
        """Both PEM, the key without a password. Raises ConfigError where the package is missing, or these two don't serve."""
        if importlib.util.find_spec("c2pa") is None:
            raise ConfigError(
                f"--certificates {certificates}: signing needs a package that is not installed; run: {HINT}"
            )
        import c2pa  # an optional extra

        chain, secret = _read(certificates, "certificates"), _read(key, "key")
        algorithm = _algorithm(certificates, chain, key, secret)
        try:
            self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, secret, None))
        except c2pa.C2paError as error:
            raise ConfigError(
                f"--certificates {certificates}: {_line(error)}; the rule is a chain as C2PA asks for"
            ) from error

    def sign(self, video: Path, signed: Path, title: str, facts: dict[str, Any]) -> None:
        """Copies an mp4 with a signed `provenance.statement` in it. Raises DataError where that fails."""
        import c2pa

        name, version = facts["software"].split()
        action = {
            "action": "c2pa.created",
            "digitalSourceType": facts["digital_source_type"],
            "softwareAgent": {"name": name, "version": version},
            "when": facts["created"],
            "parameters": {f"fiag_dist.{fact}": facts[fact] for fact in _STATED},
        }
        manifest = {
            "claim_generator_info": [{"name": name, "version": version}],
            "title": title,
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [action]}}],
        }
        try:
            with c2pa.Builder(json.dumps(manifest)) as builder:
                builder.sign_file(str(video), str(signed), self._signer)
        except c2pa.C2paError as error:
            raise DataError(
                f"{title}: can't be signed ({_line(error)}); check the certificates, and room on the disk"
            ) from error


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--{option} {path}: can't be read ({error.strerror}); give a PEM file") from error


def _algorithm(certificates: Path, chain: bytes, path: Path, secret: bytes) -> bytes:
    """C2PA's name of how this key signs, once it is known to be the first certificate's."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # comes with c2pa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509 import load_pem_x509_certificates

    try:
        key = load_pem_private_key(secret, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"--key {path}: no private key in PEM without a password ({_line(error)}); give one"
        ) from error
    try:
        first = load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ConfigError(
            f"--certificates {certificates}: no certificates in PEM ({_line(error)}); give a chain"
        ) from error
    if first.public_key() != key.public_key():
        raise ConfigError(
            f"--key {path}: is not that of the first certificate in {certificates}; give the one that belongs to it"
        )
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size in (256, 384, 521):
        return {256: b"es256", 384: b"es384", 521: b"es512"}[key.key_size]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return b"ps256"
    raise ConfigError(f"--key {path}: a {type(key).__name__}; the rule is EC (P-256, P-384, P-521), Ed25519 or RSA")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
