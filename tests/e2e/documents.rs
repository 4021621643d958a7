//! Every configuration shown in README, docs/ and conf/ is accepted and starts.
//!
//! They start in a network namespace in which any address can be bound, with the files that they name moved into a temporary
//! directory. Seen to fail with `backends` misspelt in docs/guide.md.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::netns::Netns;
use crate::common::{Certificate, Launch, may_make_namespaces};

/// `(where, text)` of every complete configuration.
fn examples() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for path in files(root, "md").into_iter().chain(files(&root.join("docs"), "md")) {
        let text = fs::read_to_string(&path).unwrap();
        let blocks = text.split("```yaml\n").skip(1);
        for (n, block) in blocks.enumerate() {
            let block = block.split("```").next().unwrap_or_default();
            if block.contains("listeners:") && block.contains("pools:") {
                found.push((format!("{} block {}", path.display(), n + 1), block.to_string()));
            }
        }
    }
    for path in files(&root.join("conf"), "yaml") {
        let text = fs::read_to_string(&path).unwrap();
        if text.lines().any(|line| line.starts_with("listeners:")) {
            found.push((path.display().to_string(), text));
        }
    }
    found
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

#[test]
fn every_documented_configuration_is_accepted() {
    let examples = examples();
    assert!(examples.len() >= 10, "the documents are elsewhere: {}", examples.len());
    let mut refused = Vec::new();
    for (place, text) in &examples {
        if let Err(errors) = weir::config::parse(place, text) {
            refused.push(errors.to_string());
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

#[test]
fn every_documented_configuration_starts() {
    if !may_make_namespaces() {
        return;
    }
    let netns = Netns::new("documents");
    netns.sysctl("net.ipv4.ip_nonlocal_bind", "1");
    netns.sysctl("net.ipv6.ip_nonlocal_bind", "1");
    let files = tempfile::tempdir().unwrap();
    let secret = files.path().join("secret");
    fs::write(&secret, "an example, and long enough for a secret of 32 bytes").unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    // An authority, and what it has signed: itself. Nobody will be asked for it.
    let made = Certificate::self_signed(files.path(), "etcd", "DNS:etcd.example.org");
    fs::copy(&made.certificate, files.path().join("etcd-ca.pem")).unwrap();
    fs::copy(&made.certificate, files.path().join("ca.pem")).unwrap();
    fs::copy(&secret, files.path().join("etcd-password")).unwrap();
    let directory = files.path().display().to_string();
    for (place, text) in examples() {
        println!("{place}");
        let text = text
            .replace("/etc/weir", &directory)
            .replace("/var/log/weir", &directory)
            .replace("/run/weir/admin.sock", &format!("{directory}/admin.sock"));
        // The harness brings its own admin socket where the text names none.
        Launch::new(&text).inside(&netns).start().stop();
    }
}
