//! Keys and certificates of one control plane.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// The certificate of the authority in the folder.
pub(super) const AUTHORITY: &str = "ca.crt";

/// Writes [`AUTHORITY`], the API server's `server.crt` and `server.key`, and the keys `sa.key` and `sa.pub` of
/// service-account tokens into `folder`. `names` are the addresses and DNS names the server's certificate
/// is good for.
///
/// The key of the certificate authority is forgotten: nothing else is ever signed by it.
pub(super) fn write(folder: &Path, names: &[&str]) -> Result<()> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "lb-tests control plane");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority_key = KeyPair::generate()?;
    write_file(folder, AUTHORITY, &authority.self_signed(&authority_key)?.pem())?;

    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut server = CertificateParams::new(names).context("a name of the API server")?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_key = KeyPair::generate()?;
    let server = server.signed_by(&server_key, &Issuer::new(authority, authority_key))?;
    write_file(folder, "server.crt", &server.pem())?;
    write_file(folder, "server.key", &server_key.serialize_pem())?;
    let accounts_key = KeyPair::generate()?;
    write_file(folder, "sa.key", &accounts_key.serialize_pem())?;
    write_file(folder, "sa.pub", &accounts_key.public_key_pem())
}

fn write_file(folder: &Path, name: &str, content: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
}
