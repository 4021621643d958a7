//! TLS of probes: what they speak, and by whose word they take a certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::config::model::{Pool, ProbeTls};
use crate::health::{Reason, Remark};

/// How the probes of a pool speak TLS.
#[derive(Debug, Clone)]
pub struct Secured {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

/// Those of all pools, by name. Reads their `ca` files.
pub fn load(pools: &[Pool]) -> Result<HashMap<String, Secured>, String> {
    let with_tls = pools
        .iter()
        .filter_map(|pool| Some((&pool.policy, pool.policy.health.tls.as_ref()?)));
    with_tls
        .map(|(policy, tls)| match secured(tls) {
            Ok(secured) => Ok((policy.name.clone(), secured)),
            Err(why) => Err(format!("pools.{}.health: {why}", policy.name)),
        })
        .collect()
}

fn secured(tls: &ProbeTls) -> Result<Secured, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let mut config = match &tls.ca {
        Some(ca) => builder.with_root_certificates(roots(ca)?).with_no_client_auth(),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth(),
    };
    // Each probe shall see a whole handshake: certificates are renewed.
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = tls.server_name.is_some();
    let name = tls.server_name.clone().map(ServerName::try_from).transpose();
    Ok(Secured {
        config: Arc::new(config),
        name: name.map_err(|e| e.to_string())?,
    })
}

fn roots(ca: &Path) -> Result<RootCertStore, String> {
    let file = |why: &dyn std::fmt::Display| format!("ca: {}: {why}", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|e| file(&e))? {
        roots.add(certificate.map_err(|e| file(&e))?).map_err(|e| file(&e))?;
    }
    match roots.is_empty() {
        true => Err(file(&"holds no certificate")),
        false => Ok(roots),
    }
}

impl Secured {
    /// A connection to this address; a unix socket has none.
    pub fn connect(&self, address: Option<IpAddr>) -> Result<Box<ClientConnection>, Remark> {
        let by_address = || match address {
            Some(address) => ServerName::IpAddress(address.into()),
            None => ServerName::try_from("localhost").expect("a name"),
        };
        let name = self.name.clone().unwrap_or_else(by_address);
        let connection = ClientConnection::new(self.config.clone(), name);
        connection.map(Box::new).map_err(failed)
    }
}

/// What is said of a handshake that fails.
pub fn failed(why: impl std::fmt::Display) -> Remark {
    Reason::Tls.says(format!("TLS: {why}"))
}

/// Takes every certificate; that the backend holds its key is proven all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
