//! Signed images: what a policy demands is checked before anything of an image is unpacked.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use serde_json::json;
use tonic::Code;

use crate::support::image::{Dialect, Image, descriptor, to_bytes};
use crate::support::layer::{Contents, Packing};
use crate::support::{Node, registry};

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl (Debian package) runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {errors}");
    output.stdout
}

/// A new pair of keys: the private one, and beside it `.pub`.
fn new_key(path: &Path) -> String {
    let path = path.display().to_string();
    let curve = "ec_paramgen_curve:P-256";
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        curve,
        "-out",
        &path,
    ]);
    openssl(&[
        "pkey",
        "-in",
        &path,
        "-pubout",
        "-out",
        &format!("{path}.pub"),
    ]);
    path
}

fn push(repository: &str) -> (String, Image) {
    let layer = Contents::new()
        .file("etc/signed", 0o644, repository.as_bytes())
        .pack(Packing::Gzip);
    let image = Image::new(Dialect::Oci, &[layer], &json!({}));
    registry().upload(repository, "latest", &image);
    (registry().image(&format!("{repository}:latest")), image)
}

/// Pushes a signature as cosign does.
fn sign(repository: &str, image: &Image, key: &str, dir: &Path) {
    let payload = to_bytes(&json!({
        "critical": {
            "identity": {"docker-reference": registry().image(repository)},
            "image": {"docker-manifest-digest": image.digest()},
            "type": "cosign container image signature",
        },
        "optional": null,
    }));
    let file = dir.join("payload");
    fs::write(&file, &payload).expect("a file of the test");
    let signature = openssl(&["dgst", "-sha256", "-sign", key, &file.display().to_string()]);
    let signature = base64::engine::general_purpose::STANDARD.encode(signature);
    let config = b"{}";
    let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
    let mut layer = descriptor(kind, &payload);
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
    let manifest = to_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": Dialect::Oci.manifest(),
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [layer],
    }));
    registry().put_blob(repository, config);
    registry().put_blob(repository, &payload);
    let tag = format!("{}.sig", image.digest().replace(':', "-"));
    registry().put_manifest(repository, &tag, Dialect::Oci.manifest(), &manifest);
}

fn policy(node: &Node) -> String {
    let host = &registry().address;
    let key = node.path("key.pub").display().to_string();
    format!(
        "[[image.policy]]\nprefix = \"{host}/signed\"\naction = \"signed\"\nkeys = [\"{key}\"]\n\
         [[image.policy]]\nprefix = \"{host}/signed/free\"\naction = \"accept\"\n\
         [[image.policy]]\nprefix = \"{host}/rejected\"\naction = \"reject\"\n"
    )
}

#[tokio::test]
async fn a_policy_admits_what_is_signed_and_nothing_else_below_its_prefix() {
    let mut node = Node::prepare("");
    let dir = node.path("");
    let key = new_key(&node.path("key"));
    let stranger = new_key(&node.path("stranger"));
    node.configure(&policy(&node));
    node.restart().await;
    let (name, image) = push("signed/app");
    let refused = async |name: &str, why: &str| {
        let error = node
            .cri
            .pull(name)
            .await
            .expect_err("the policy forbids it");
        assert_eq!(error.code(), Code::PermissionDenied, "{error}");
        let message = error.message();
        assert!(
            message.starts_with("SignatureValidationFailed: "),
            "{error}"
        );
        assert!(message.contains(name) && message.contains(why), "{error}");
    };
    refused(&name, "has no signature").await;
    sign("signed/app", &image, &stranger, &dir);
    refused(&name, "none of the keys made it").await;
    let layers = fs::read_dir(node.names.root().join("layers")).expect("layers");
    assert_eq!(layers.count(), 0, "nothing was unpacked");
    sign("signed/app", &image, &key, &dir);
    assert_eq!(node.cri.pull(&name).await.expect("PullImage"), image.id());

    let (free, image) = push("signed/free/app");
    assert_eq!(node.cri.pull(&free).await.expect("PullImage"), image.id());
    let (rejected, _) = push("rejected/app");
    refused(&rejected, "rejects it").await;

    // A key that is replaced counts from the next pull on; what is here stays.
    fs::rename(format!("{stranger}.pub"), format!("{key}.pub")).expect("another key");
    refused(&name, "none of the keys made it").await;
    let status = node.cri.image_status(&name).await.expect("ImageStatus");
    assert!(status.is_some());
}

#[tokio::test]
async fn a_policy_that_cannot_be_kept_stops_the_start() {
    let node = Node::prepare("");
    node.configure(&policy(&node));
    let text = node.refused(&mut node.serve());
    assert!(
        text.contains("image.policy") && text.contains("key.pub"),
        "{text}"
    );
}
