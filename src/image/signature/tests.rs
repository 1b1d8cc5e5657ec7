//! Signatures as openssl makes them, served by registries that are honest and by such as are not.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::{PAYLOAD_TYPE, Policy, PolicyRule, PublicKey, SIGNATURE};
use crate::image::testing::server::{Response, Server};
use crate::image::testing::{Tar, TestImage};
use crate::image::{Credentials, Digest, ImageConfig, ImageDriver, ImageError};

/// How openssl makes each kind of key.
const KINDS: [(&str, &[&str]); 4] = [
    ("p256", &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("p384", &["EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
    ("rsa", &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
    ("ed25519", &["ed25519"]),
];

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl (Debian package) runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {errors}");
    output.stdout
}

/// A pair of keys in a directory.
struct Signer {
    private: PathBuf,
    public: PathBuf,
}

impl Signer {
    fn new(dir: &Path, name: &str, kind: &[&str]) -> Self {
        let (private, public) = (dir.join(name), dir.join(format!("{name}.pub")));
        let (of, to) = (private.display().to_string(), public.display().to_string());
        let make = ["genpkey", "-out", &of, "-algorithm"];
        openssl(&[&make, kind].concat());
        openssl(&["pkey", "-in", &of, "-pubout", "-out", &to]);
        Self { private, public }
    }

    fn p256(dir: &Path, name: &str) -> Self {
        Self::new(dir, name, KINDS[0].1)
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let file = self.private.with_extension("message");
        fs::write(&file, message).expect("a file of the test");
        let (key, file) = (
            self.private.display().to_string(),
            file.display().to_string(),
        );
        let mut arguments = vec!["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &file];
        if !key.ends_with("ed25519") {
            arguments.extend(["-digest", "sha256"]);
        }
        openssl(&arguments)
    }
}

#[test]
fn each_kind_of_key_knows_its_own_signatures() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, kind) in KINDS {
        let signer = Signer::new(dir.path(), name, kind);
        let key = PublicKey::read(&signer.public).expect(name);
        let signature = signer.sign(b"message");
        assert!(key.verifies(b"message", &signature), "{name}");
        assert!(!key.verifies(b"massage", &signature), "{name}");
        let mut bent = signature.clone();
        let last = bent.len() - 1;
        bent[last] ^= 1;
        assert!(!key.verifies(b"message", &bent), "{name}");
        let other = Signer::new(dir.path(), &format!("other-{name}"), kind);
        assert!(!key.verifies(b"message", &other.sign(b"message")), "{name}");
        let private = fs::read_to_string(&signer.private).expect("a key");
        assert!(PublicKey::parse(&private).is_err(), "{name} is not public");
    }
    let gone = PublicKey::read(&dir.path().join("gone"))
        .err()
        .expect("no file");
    assert!(gone.contains("gone"), "{gone}");
    let curve = ["EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"];
    let strange = Signer::new(dir.path(), "strange", &curve);
    let error = PublicKey::read(&strange.public)
        .err()
        .expect("a strange curve");
    assert!(error.contains("is not ECDSA P-256"), "{error}");
}

/// What a registry holds besides an image, by the end of the path.
type Extra = HashMap<String, Vec<u8>>;

/// The payload that cosign would sign.
fn payload(identity: &str, digest: &Digest) -> Vec<u8> {
    let json = json!({"critical": {
        "identity": {"docker-reference": identity},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }, "optional": null});
    json.to_string().into_bytes()
}

/// Adds a list of signatures of `digest`: payloads with what is said to be their signature.
fn attach(extra: &mut Extra, digest: &Digest, signatures: &[(Vec<u8>, Vec<u8>)]) {
    let mut layers = Vec::new();
    for (payload, signature) in signatures {
        let blob = Digest::sha256(payload);
        let text = base64::engine::general_purpose::STANDARD.encode(signature);
        layers.push(
            json!({"mediaType": PAYLOAD_TYPE, "digest": blob, "size": payload.len(),
            "annotations": {SIGNATURE: text}}),
        );
        extra.insert(blob.to_string(), payload.clone());
    }
    let list = json!({"schemaVersion": 2, "layers": layers});
    let tag = format!("sha256-{}.sig", digest.hex());
    extra.insert(tag, list.to_string().into_bytes());
}

/// A registry with an image under `latest`, what else is under `multi`, and what `more` adds when
/// the address is known.
fn serve(image: &TestImage, index: Option<&[u8]>, more: impl FnOnce(&str, &mut Extra)) -> Server {
    let extra: Arc<OnceLock<Extra>> = Arc::default();
    let (image, all) = (image.clone(), Arc::clone(&extra));
    let index = index.map(<[u8]>::to_vec);
    let server = Server::start(move |request, _| {
        let path = request.resource();
        let name = path.rsplit('/').next().unwrap_or_default();
        if let Some(found) = all.get().and_then(|extra| extra.get(name)) {
            return Response::ok(found);
        }
        match &index {
            Some(index) if name == "multi" => {
                Response::ok(index).header("content-type", crate::image::manifest::OCI_INDEX)
            }
            _ => image.answer(path),
        }
    });
    let mut made = Extra::new();
    more(&server.address.to_string(), &mut made);
    extra.set(made).expect("set once");
    server
}

fn image() -> TestImage {
    TestImage::of(&[Tar::default().file("file", "text").end()])
}

/// Resolves an image of `server` under a policy that demands signatures of these keys.
async fn resolve(server: &Server, name: &str, keys: &[&Signer]) -> Result<(), ImageError> {
    let root = tempfile::tempdir().expect("a directory");
    let rule = PolicyRule {
        prefix: server.address.to_string(),
        action: "signed".into(),
        keys: keys.iter().map(|signer| signer.public.clone()).collect(),
        signed_as: Vec::new(),
    };
    let config = ImageConfig {
        certs_d: root.path().join("certs.d"),
        first_wait: Duration::from_millis(1),
        policy: Policy::try_from(vec![rule]).expect("a policy"),
        ..ImageConfig::default()
    };
    let driver = ImageDriver::new(root.path(), config).expect("a driver");
    let reference = format!("{}/{name}", server.address)
        .parse()
        .expect("a name");
    let resolved = driver.resolve(&reference, &Credentials::Anonymous).await;
    resolved.map(drop)
}

/// Why it was refused.
async fn refusal(server: &Server, name: &str, keys: &[&Signer]) -> String {
    let error = resolve(server, name, keys).await.expect_err("refused");
    assert!(matches!(error, ImageError::Signature { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn an_image_is_pulled_when_one_of_the_keys_has_signed_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let (one, two) = (Signer::p256(dir.path(), "1"), Signer::p256(dir.path(), "2"));
    let image = image();
    let digest = Digest::sha256(&image.manifest);
    let server = serve(&image, None, |host, extra| {
        let payload = payload(&format!("{host}/app"), &digest);
        let signature = two.sign(&payload);
        let stray = one.sign(b"something else");
        attach(
            extra,
            &digest,
            &[(payload.clone(), stray), (payload, signature)],
        );
    });
    let pulled = resolve(&server, "app:latest", &[&one, &two]).await;
    pulled.expect("signed by the second");
    let by_digest = format!("app@{digest}");
    let pulled = resolve(&server, &by_digest, &[&two]).await;
    pulled.expect("the same image");
    let why = refusal(&server, "app:latest", &[&one]).await;
    assert!(why.contains("none of the keys made it"), "{why}");
    let why = refusal(&server, "another:latest", &[&two]).await;
    assert!(why.contains("it is for the repository"), "{why}");
    let config = Digest::sha256(&image.config);
    let asked = server.requests();
    let asked = |path: String| asked.iter().any(|request| request.path.ends_with(&path));
    assert!(asked(format!("app/blobs/{config}")));
    assert!(
        !asked(format!("another/blobs/{config}")),
        "nothing of the refused image is read"
    );
}

/// Lists of signatures that hold none, and what is said of each.
fn made_up_lists(another: &Digest) -> [(&'static str, Vec<u8>); 5] {
    let list = |layers: Value| {
        let list = json!({"schemaVersion": 2, "layers": layers});
        list.to_string().into_bytes()
    };
    let layer =
        |kind: &str, size: u64| list(json!([{"mediaType": kind, "digest": another, "size": size}]));
    [
        ("do not parse", b"<html>".to_vec()),
        ("the list is empty", list(json!([]))),
        ("is another one", layer("text/plain", 1)),
        ("lacks the annotation", layer(PAYLOAD_TYPE, 1)),
        ("more than 65536", layer(PAYLOAD_TYPE, 1 << 20)),
    ]
}

#[tokio::test]
async fn what_a_registry_makes_up_does_not_pass() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::p256(dir.path(), "key");
    let image = image();
    let digest = Digest::sha256(&image.manifest);
    let tag = format!("sha256-{}.sig", digest.hex());
    let another = Digest::sha256(b"an image that was signed once");
    let payload_of = |host: &str, digest: &Digest| payload(&format!("{host}/app"), digest);
    type Lie<'a> = (&'a str, Box<dyn FnOnce(&str, &mut Extra) + 'a>);
    let lies: Vec<Lie<'_>> = vec![
        ("has no signature", Box::new(|_, _| {})),
        (
            "it is for another image",
            Box::new(|host, extra| {
                let payload = payload_of(host, &another);
                let signature = signer.sign(&payload);
                attach(extra, &digest, &[(payload, signature)]);
            }),
        ),
        (
            "none of the keys made it",
            Box::new(|host, extra| {
                let old = payload_of(host, &another);
                attach(
                    extra,
                    &digest,
                    &[(payload_of(host, &digest), signer.sign(&old))],
                );
            }),
        ),
    ];
    for (named, lie) in lies {
        let server = serve(&image, None, lie);
        let why = refusal(&server, "app:latest", &[&signer]).await;
        assert!(why.contains(named), "{named}: {why}");
    }
    for (named, list) in made_up_lists(&another) {
        let server = serve(&image, None, |_, extra| {
            extra.insert(tag.clone(), list);
        });
        let why = refusal(&server, "app:latest", &[&signer]).await;
        assert!(why.contains(named), "{named}: {why}");
    }
    // A payload that is not the one its digest names is no answer at all.
    let server = serve(&image, None, |host, extra| {
        let payload = payload_of(host, &digest);
        let signature = signer.sign(&payload);
        attach(extra, &digest, &[(payload.clone(), signature)]);
        extra.insert(Digest::sha256(&payload).to_string(), b"{}".to_vec());
    });
    let error = resolve(&server, "app:latest", &[&signer])
        .await
        .expect_err("a lie");
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_index_counts_by_its_own_signature_or_that_of_the_chosen_manifest() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::p256(dir.path(), "key");
    let image = image();
    let manifest = Digest::sha256(&image.manifest);
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": crate::image::manifest::OCI_MANIFEST, "digest": manifest,
         "size": image.manifest.len()},
    ]});
    let index = index.to_string().into_bytes();
    let top = Digest::sha256(&index);
    for signed in [&top, &manifest] {
        let server = serve(&image, Some(&index), |host, extra| {
            let payload = payload(&format!("{host}/app"), signed);
            let signature = signer.sign(&payload);
            attach(extra, signed, &[(payload, signature)]);
        });
        let pulled = resolve(&server, "app:multi", &[&signer]).await;
        pulled.expect("it is signed");
        // Another index, which nobody has signed, gains nothing from the signature of the first;
        // what it names must be signed itself.
        let mut swapped = index.clone();
        swapped.push(b' ');
        let server = serve(&image, Some(&swapped), |host, extra| {
            let payload = payload(&format!("{host}/app"), signed);
            let signature = signer.sign(&payload);
            attach(extra, signed, &[(payload, signature)]);
        });
        let pulled = resolve(&server, "app:multi", &[&signer]).await;
        assert_eq!(pulled.is_ok(), *signed == manifest, "{pulled:?}");
    }
}

#[tokio::test]
async fn what_is_rejected_is_not_even_asked_for() {
    let server = serve(&image(), None, |_, _| {});
    let root = tempfile::tempdir().expect("a directory");
    let rule = PolicyRule {
        prefix: server.address.to_string(),
        action: "reject".into(),
        keys: Vec::new(),
        signed_as: Vec::new(),
    };
    let config = ImageConfig {
        certs_d: root.path().join("certs.d"),
        policy: Policy::try_from(vec![rule]).expect("a policy"),
        ..ImageConfig::default()
    };
    let driver = ImageDriver::new(root.path(), config).expect("a driver");
    let reference = format!("{}/app", server.address).parse().expect("a name");
    let refused = driver.resolve(&reference, &Credentials::Anonymous).await;
    let error = refused.expect_err("refused");
    assert!(error.to_string().contains("rejects it"), "{error}");
    assert!(server.requests().is_empty());
}
