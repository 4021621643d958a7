//! Certificates for the tests, made by openssl.

use std::path::{Path, PathBuf};

use super::{command, run};

/// Files of a certificate.
pub struct Certificate {
    /// The certificate, which is its own authority.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificate {
    /// Makes `NAME.pem` and `NAME.key`, signed by itself, for what a client may look for: `DNS:db.example.org,IP:127.0.0.1`.
    #[track_caller]
    pub fn self_signed(dir: &Path, name: &str, subjects: &str) -> Certificate {
        let made = Certificate {
            certificate: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        let mut openssl = command("openssl");
        openssl.args("req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1".split(' '));
        openssl.args(["-subj", &format!("/CN={name}")]);
        openssl.args(["-addext", &format!("subjectAltName={subjects}")]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.arg("-keyout").arg(&made.key).arg("-out").arg(&made.certificate);
        run(&mut openssl);
        made
    }
}
