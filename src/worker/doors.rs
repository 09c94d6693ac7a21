//! What listeners need that may change while the server runs: certificates and users.
//!
//! Owns: [`Doors`], made of the files that `--tls-cert`, `--tls-key`, `--tls-client-ca` and `--auth-file`
//! name, and what each kind of listener offers by them. Promises: files are wrong or right as a whole;
//! what is wrong names the flag, the file and the remedy. Must not: change: a reload makes new doors, and
//! sessions under way keep theirs.
use std::collections::HashSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::auth::{self, Users};
use crate::config::{Config, Problem, grammar};
use crate::limits;
use crate::smtp::server::{Access, ServerConfig};
use crate::spool::SpoolIdentity;
use crate::tls::{PemPair, ServerTls};

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// `--listen`
    Smtp,
    /// `--submission`: STARTTLS, then AUTH.
    Submission,
    /// `--submissions`: the connection begins with a handshake.
    Submissions,
}

pub struct Doors {
    pub tls: Option<ServerTls>,
    pub users: Option<Arc<Users>>,
    smtp: Arc<ServerConfig>,
    submission: Arc<ServerConfig>,
}

/// Contents of the files.
pub struct Files {
    pairs: Vec<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    client_ca: Option<Vec<u8>>,
    users: Option<Zeroizing<Vec<u8>>>,
}

impl Files {
    /// Reads them, or says what keeps them from being read.
    pub fn read(config: &Config) -> Result<Files, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut read = |flag: &str, path: &Path, most: u64| {
            read_file(path, most).unwrap_or_else(|why| {
                let shown = path.display();
                problems.push(Problem(format!("--{flag}: {shown}: {why}")));
                Vec::new()
            })
        };
        let pairs = config
            .tls_pairs
            .iter()
            .map(|(cert, key)| {
                let cert = read("tls-cert", cert, limits::PEM_FILE_BYTES);
                (cert, Zeroizing::new(read("tls-key", key, limits::PEM_FILE_BYTES)))
            })
            .collect();
        let client_ca =
            config.tls_client_ca.as_ref().map(|p| read("tls-client-ca", p, limits::PEM_FILE_BYTES));
        let users =
            config.auth_file.as_ref().map(|p| Zeroizing::new(read("auth-file", p, limits::AUTH_FILE_BYTES)));
        if problems.is_empty() { Ok(Files { pairs, client_ca, users }) } else { Err(problems) }
    }
}

fn read_file(path: &Path, most: u64) -> Result<Vec<u8>, String> {
    let file =
        std::fs::File::open(path).map_err(|error| format!("{error}: is the path right, and readable?"))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > most {
        return Err(format!("is larger than {}", grammar::show_size(most)));
    }
    Ok(bytes)
}

/// What is wrong with the files, for `ringpost check`.
pub fn inspect(config: &Config) -> Vec<Problem> {
    let identity = SpoolIdentity { id: 0, secret: 0 };
    let built = Files::read(config).and_then(|files| Doors::build(config, &files, identity));
    built.err().unwrap_or_default()
}

impl Doors {
    /// Makes sense of the files.
    pub fn build(config: &Config, files: &Files, identity: SpoolIdentity) -> Result<Doors, Vec<Problem>> {
        let mut problems = Vec::new();
        let tls = build_tls(config, files).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let users = build_users(config, files, identity).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        if !problems.is_empty() {
            return Err(problems);
        }
        let mechanisms = match (&tls, &users) {
            (Some(_), Some(users)) => users.mechanisms(),
            _ => Vec::new(),
        };
        let smtp = |submission| {
            Arc::new(ServerConfig {
                hostname: config.hostname.as_str().into(),
                max_message_bytes: config.max_message_bytes,
                max_recipients: config.max_recipients,
                access: Access {
                    starttls: tls.is_some(),
                    mechanisms: mechanisms.clone(),
                    submission,
                    local_domains: config.local_domains.iter().cloned().collect::<HashSet<_>>(),
                    postmaster: config.postmaster.clone(),
                },
                ..ServerConfig::default()
            })
        };
        Ok(Doors { smtp: smtp(false), submission: smtp(true), tls, users })
    }

    /// What sessions of such a listener are told.
    pub fn smtp(&self, service: Service) -> Arc<ServerConfig> {
        match service {
            Service::Smtp => self.smtp.clone(),
            Service::Submission | Service::Submissions => self.submission.clone(),
        }
    }
}

fn build_tls(config: &Config, files: &Files) -> Result<Option<ServerTls>, Problem> {
    if files.pairs.is_empty() {
        return Ok(None);
    }
    let pairs: Vec<PemPair<'_>> = files.pairs.iter().map(|(chain, key)| PemPair { chain, key }).collect();
    let named = |(cert, key): &(PathBuf, PathBuf)| format!("{} with {}", cert.display(), key.display());
    let shown: Vec<String> = config.tls_pairs.iter().map(named).collect();
    ServerTls::from_pem(&pairs, files.client_ca.as_deref())
        .map(Some)
        .map_err(|why| Problem(format!("--tls-cert, --tls-key ({}): {why}", shown.join(", "))))
}

fn build_users(
    config: &Config,
    files: &Files,
    identity: SpoolIdentity,
) -> Result<Option<Arc<Users>>, Problem> {
    let (Some(path), Some(text)) = (&config.auth_file, &files.users) else { return Ok(None) };
    let problem = |why: String| Problem(format!("--auth-file: {}: {why}", path.display()));
    let text = std::str::from_utf8(text).map_err(|_| problem("is not UTF-8 text".into()))?;
    let mut secret = [0; 16];
    secret[..8].copy_from_slice(&identity.secret.to_be_bytes());
    secret[8..].copy_from_slice(&identity.id.to_be_bytes());
    Users::parse(text, auth::Secret(secret), user_rate).map(|users| Some(Arc::new(users))).map_err(problem)
}

fn user_rate(text: &str) -> Result<(u32, Duration), String> {
    grammar::rate(text).map(|rate| (rate.count, rate.per))
}

/// Whether the file of users could hold this line.
pub fn check_user_line(line: &str) -> Result<(), String> {
    Users::parse(line, auth::Secret([0; 16]), user_rate).map(drop)
}
