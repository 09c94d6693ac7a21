//! What is kept of a password: a slow hash, or a SCRAM verifier.
//!
//! Owns: [`Credential`], its text forms (PHC strings of argon2 and scrypt, bcrypt's own, SCRAM-SHA-256 as
//! RFC 5803 writes it), checking a password against one, and making one. Promises: a text that is taken
//! can be checked, at a cost that is bounded by `limits`. Must not: be checked on a worker thread: it takes
//! milliseconds by design.
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

use super::prepare;
use super::scram::Verifier;
use crate::limits;

/// One user's secret as it is kept.
#[derive(Clone)]
pub enum Credential {
    Argon2(Box<PasswordHash>),
    Scrypt(Box<PasswordHash>),
    Bcrypt(Box<str>),
    Scram(Box<Verifier>),
}

/// What [`Credential::make`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Argon2id,
    ScramSha256,
}

/// Parameters of argon2id: 19 MiB of memory and two passes, about 20 ms (OWASP's smallest advice).
const ARGON2_KIB: u32 = 19 * 1024;
const ARGON2_PASSES: u32 = 2;
/// Rounds of PBKDF2 in a SCRAM verifier that is made here: the client computes as many at each login.
const SCRAM_ROUNDS: u32 = 100_000;
const SALT_BYTES: usize = 16;

impl Credential {
    /// Reads one of the text forms. The error is the end of a sentence.
    pub fn parse(text: &str) -> Result<Credential, String> {
        if text.starts_with("SCRAM-SHA-256$") {
            return Verifier::parse(text).map(|verifier| Credential::Scram(Box::new(verifier)));
        }
        if ["$2a$", "$2b$", "$2y$"].iter().any(|tag| text.starts_with(tag)) {
            return parse_bcrypt(text);
        }
        let is_argon2 = text.starts_with("$argon2");
        if !is_argon2 && !text.starts_with("$scrypt$") {
            return Err("is no hash that is known: make one with `ringpost passwd hash`".into());
        }
        let hash = PasswordHash::new(text).map_err(|why| format!("is not a PHC string: {why}"))?;
        if hash.hash.is_none() || hash.salt.is_none() {
            return Err("has no salt or no hash".into());
        }
        if is_argon2 {
            let params =
                argon2::Params::try_from(&hash).map_err(|why| format!("has bad parameters: {why}"))?;
            if params.m_cost() > limits::AUTH_HASH_KIB || params.t_cost() > limits::AUTH_HASH_PASSES {
                return Err("asks for more memory or passes than a login may cost here".into());
            }
            return Ok(Credential::Argon2(Box::new(hash)));
        }
        let params = scrypt::Params::try_from(&hash).map_err(|why| format!("has bad parameters: {why}"))?;
        // scrypt takes 128 * r * N bytes.
        let kib = u64::from(params.r()) << params.log_n() >> 3;
        if kib > u64::from(limits::AUTH_HASH_KIB) || params.p() > limits::AUTH_HASH_PASSES {
            return Err("asks for more memory or passes than a login may cost here".into());
        }
        Ok(Credential::Scrypt(Box::new(hash)))
    }

    /// Whether this was made of `password`, in its prepared form (RFC 4013) or, by another program, as it
    /// is. Slow.
    pub fn matches(&self, password: &[u8]) -> bool {
        let prepared = prepare::password(password);
        prepared.is_some_and(|prepared| self.was_made_of(&prepared)) || self.was_made_of(password)
    }

    fn was_made_of(&self, password: &[u8]) -> bool {
        match self {
            Credential::Argon2(hash) => argon2::Argon2::default().verify_password(password, &**hash).is_ok(),
            Credential::Scrypt(hash) => scrypt::Scrypt::default().verify_password(password, &**hash).is_ok(),
            Credential::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Credential::Scram(verifier) => {
                let derived = Zeroizing::new(verifier.derive(password));
                verify_slices_are_equal(&*derived, &verifier.stored_key).is_ok()
            }
        }
    }

    /// Makes one of the prepared form of `password`, with a random salt, as text.
    pub fn make(scheme: Scheme, password: &[u8]) -> String {
        let prepared = prepare::password(password);
        let password = prepared.as_ref().map_or(password, |prepared| prepared);
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).expect("the kernel's random source works once the system has booted");
        match scheme {
            Scheme::Argon2id => {
                let params =
                    argon2::Params::new(ARGON2_KIB, ARGON2_PASSES, 1, None).expect("valid parameters");
                let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
                let hash: PasswordHash =
                    argon2.hash_password_with_salt(password, &salt).expect("any password can be hashed");
                hash.to_string()
            }
            Scheme::ScramSha256 => Verifier::make(password, &salt, SCRAM_ROUNDS).to_string(),
        }
    }

    /// The SCRAM verifier, if it is one.
    pub fn scram(&self) -> Option<&Verifier> {
        match self {
            Credential::Scram(verifier) => Some(verifier),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential")
    }
}

fn parse_bcrypt(text: &str) -> Result<Credential, String> {
    let cost = text.get(4..6).and_then(|digits| digits.parse::<u32>().ok());
    let rest = text.get(7..).unwrap_or_default();
    let is_whole = text.as_bytes().get(6) == Some(&b'$')
        && rest.len() == 53
        && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/'));
    match cost {
        Some(4..=limits::AUTH_BCRYPT_COST) if is_whole => Ok(Credential::Bcrypt(text.into())),
        Some(cost) if is_whole => {
            Err(format!("has a cost of {cost}: from 4 to {} is taken", limits::AUTH_BCRYPT_COST))
        }
        _ => Err("is not a bcrypt hash".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_checked() {
        // Made with other programs: crypt(3), Python's hashlib; the last one is RFC 7677's example.
        let table = [
            ("$2b$04$BZ1NC8nm/AxsKitH7s8jFejV574GCI3nXV8jX30.BZEXAwNc3yEh2", "pencil"),
            ("$2y$04$BZ1NC8nm/AxsKitH7s8jFejV574GCI3nXV8jX30.BZEXAwNc3yEh2", "pencil"),
            (
                "$scrypt$ln=10,r=8,p=1$c2FsdHNhbHRzYWx0c2FsdA$8QnbqxnWftopcVJgUwCpa5tl4EuJwqIm91lIh9n00kY",
                "pencil",
            ),
            (&Credential::make(Scheme::Argon2id, b"pencil"), "pencil"),
            (&Credential::make(Scheme::ScramSha256, b"pencil"), "pencil"),
            (
                "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
                "pencil",
            ),
        ];
        for (text, password) in table {
            let credential = Credential::parse(text).unwrap_or_else(|why| panic!("{text} {why}"));
            assert!(credential.matches(password.as_bytes()), "{text}");
            assert!(!credential.matches(b"pencil "), "{text}");
            assert!(!credential.matches(b""), "{text}");
        }
    }

    #[test]
    fn a_password_fits_in_every_form_that_is_typed() {
        let (composed, apart) = ("p\u{fc}ncil".as_bytes(), "pu\u{308}ncil".as_bytes());
        for scheme in [Scheme::Argon2id, Scheme::ScramSha256] {
            for made_of in [composed, apart] {
                let credential = Credential::parse(&Credential::make(scheme, made_of)).unwrap();
                assert!(credential.matches(composed) && credential.matches(apart), "{scheme:?}");
                assert!(!credential.matches(b"pencil") && !credential.matches(b"p\xfcncil"), "{scheme:?}");
            }
        }
        // A client of SCRAM computes with the prepared form, whatever was typed here.
        let verifier = Verifier::make(apart, b"salt", 4096);
        assert_ne!(verifier.stored_key, verifier.derive(composed), "the verifier itself prepares nothing");
        // Another program has hashed what was typed there.
        let foreign = Credential::Scram(Box::new(verifier));
        assert!(foreign.matches(apart) && !foreign.matches(composed));
        let emoji = "\u{1f9c0}pencil".as_bytes();
        assert!(Credential::parse(&Credential::make(Scheme::ScramSha256, emoji)).unwrap().matches(emoji));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "pencil",
            "{PLAIN}pencil",
            "$1$abc$def",
            "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0",
            "$argon2id$v=19$m=9999999,t=2,p=1$c2FsdHNhbHRzYWx0$YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh",
            "$argon2id$",
            "$scrypt$ln=30,r=8,p=1$c2FsdHNhbHRzYWx0$YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh",
            "$2b$31$8kWPdKqRfnNFLGX7FRwMIuBBK3gvlhqWmuLGTUY8XrWPTlyLCKFAa",
            "$2b$04$short",
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==",
            "SCRAM-SHA-256$1:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
        ] {
            assert!(Credential::parse(text).is_err(), "{text}");
        }
    }
}
