"""Signed videos: another program verifies who signed what, and a change shows."""

import datetime
import json
from pathlib import Path

import pytest
import tiny_identity as tiny
from test_render import write_wav

from fiag_dist import render
from fiag_dist.errors import ConfigError

c2pa = pytest.importorskip("c2pa", reason="c2pa-python is not installed: bash launch/install.sh ingest,sign")

from cryptography import x509  # noqa: E402 - comes with c2pa
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed448  # noqa: E402
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: E402


def pem(key) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)


def certificate(of: str, key, by: str, signing_key, authority: bool) -> bytes:
    """As C2PA asks for: an authority's, or one for signing."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(oid, text) for oid in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)])

    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(of))
        .issuer_name(name(by))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), True)
        .add_extension(x509.KeyUsage(not authority, key_cert_sign=authority, crl_sign=authority, **usage), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return builder.sign(signing_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity in ball/, 0.2 s of sound in speech.wav, a chain and its key."""
    home = tmp_path_factory.mktemp("credentials")
    tiny.make_identity(home / "ball", tiny.pack(home / "data"), consent="by letter")
    write_wav(home / "speech.wav", 0.2)
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = certificate("Studio", own, "Root", root, False) + certificate("Root", root, "Root", root, True)
    (home / "chain.pem").write_bytes(chain)
    (home / "key.pem").write_bytes(pem(own))
    (home / "other.pem").write_bytes(pem(root))
    strange = ed448.Ed448PrivateKey.generate()
    (home / "strange.pem").write_bytes(pem(strange))
    (home / "strange_chain.pem").write_bytes(certificate("Studio", strange, "Root", root, False))
    return home


def ask(home: Path, out: Path, key: str = "key.pem", chain: str = "chain.pem") -> int:
    argv = [str(home / "ball"), "--audio", str(home / "speech.wav"), "--out", str(out)]
    return render.main([*argv, "--certificates", str(home / chain), "--key", str(home / key)])


def states(path: Path) -> tuple[dict, set[str]]:
    """The active manifest and the codes of what does not hold, as a verifier finds them."""
    with c2pa.Reader(str(path)) as reader:
        found = json.loads(reader.json())
    return found["manifests"][found["active_manifest"]], {
        status["code"] for status in found.get("validation_status", [])
    }


def test_a_signed_video_is_verified_by_another_program(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    assert ask(home, out) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["talk.mp4"]
    manifest, wrong = states(out)
    assert wrong <= {"signingCredential.untrusted"}, "all that is wrong is that nobody knows the test's own authority"
    assert manifest["signature_info"]["issuer"] == "Studio"
    (action,) = (a["data"]["actions"][0] for a in manifest["assertions"] if a["label"].startswith("c2pa.actions"))
    assert action["digitalSourceType"].endswith("compositeWithTrainedAlgorithmicMedia")
    assert action["parameters"]["fiag_dist.identity"] == "ball"
    assert action["parameters"]["fiag_dist.consent"] == "by letter"
    data = bytearray(out.read_bytes())
    data[data.rindex(b"mdat") + 2000] ^= 255
    out.write_bytes(data)
    assert "assertion.bmffHash.mismatch" in states(out)[1]


def test_what_does_not_sign_is_named(home: Path, tmp_path: Path) -> None:
    (home / "text.pem").write_text("no key")
    for key, chain, message in (
        ("text.pem", "chain.pem", "no private key in PEM"),
        ("absent.pem", "chain.pem", "can't be read"),
        ("other.pem", "chain.pem", "not that of the first certificate"),
        ("key.pem", "text.pem", "no certificates in PEM"),
        ("strange.pem", "strange_chain.pem", "EC .*Ed25519 or RSA"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            ask(home, tmp_path / "talk.mp4", key, chain)
        assert "\n" not in str(caught.value)
    argv = [str(home / "ball"), "--audio", str(home / "speech.wav"), "--out", str(tmp_path / "talk.mp4")]
    with pytest.raises(ConfigError, match="both of them or none"):
        render.main([*argv, "--key", str(home / "key.pem")])
    assert not list(tmp_path.iterdir())
