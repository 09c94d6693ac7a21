//! SCRAM-SHA-256, the server's side (RFC 5802, RFC 7677), with channel binding (RFC 5929, RFC 9266).
//!
//! Owns: [`Verifier`], what the server keeps of a password, and the two messages of an exchange each way.
//! Promises: bytes in, bytes out, with the nonce as an argument; who is not known gets the same messages
//! as who is and fails at the same point. Must not: prepare names or passwords (`prepare` does, before
//! they come here; the client does so itself).
use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::{Zeroize, Zeroizing};

use super::Bindings;
use crate::limits;

const HASH_BYTES: usize = digest::SHA256_OUTPUT_LEN;

/// What the server keeps (RFC 5802 §3). It is as good as the password for whoever impersonates the
/// server, and no help to whoever wants to log in.
#[derive(Clone)]
pub struct Verifier {
    rounds: u32,
    salt: Box<[u8]>,
    pub stored_key: [u8; HASH_BYTES],
    server_key: [u8; HASH_BYTES],
}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stored_key.zeroize();
        self.server_key.zeroize();
    }
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$rounds:salt$StoredKey:ServerKey` (RFC 5803 §3).
    pub fn parse(text: &str) -> Result<Verifier, String> {
        let parts = || {
            let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            let (rounds, salt) = parameters.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let key = |text: &str| <[u8; HASH_BYTES]>::try_from(STANDARD.decode(text).ok()?).ok();
            let salt = STANDARD.decode(salt).ok().filter(|salt| !salt.is_empty())?;
            Some(Verifier {
                rounds: rounds.parse().ok()?,
                salt: salt.into(),
                stored_key: key(stored)?,
                server_key: key(server)?,
            })
        };
        let verifier = parts().ok_or("is not a SCRAM-SHA-256 verifier")?;
        // RFC 7677 §4 asks for at least 4096.
        if !(4096..=limits::AUTH_SCRAM_ROUNDS).contains(&verifier.rounds) {
            return Err(format!(
                "has {} rounds: from 4096 to {} is taken",
                verifier.rounds,
                limits::AUTH_SCRAM_ROUNDS
            ));
        }
        Ok(verifier)
    }

    pub fn make(password: &[u8], salt: &[u8], rounds: u32) -> Verifier {
        let salted = salted_password(password, salt, rounds);
        let stored_key = hash(&*mac(&*salted, b"Client Key"));
        let server_key = *mac(&*salted, b"Server Key");
        Verifier { rounds, salt: salt.into(), stored_key, server_key }
    }

    /// The StoredKey that `password` would give. Slow.
    pub fn derive(&self, password: &[u8]) -> [u8; HASH_BYTES] {
        let salted = salted_password(password, &self.salt, self.rounds);
        hash(&*mac(&*salted, b"Client Key"))
    }

    /// For a name that is not known: a salt that is the same at every attempt and after a restart, and keys
    /// that no proof fits.
    pub fn fake(secret: &[u8], name: &str, like: Option<&Verifier>) -> Verifier {
        let (rounds, salt_bytes) = like.map_or((4096, 16), |v| (v.rounds, v.salt.len().min(HASH_BYTES)));
        let salt = mac(secret, &[b"salt of ", name.as_bytes()].concat());
        let mut keys = [[0; HASH_BYTES]; 2];
        for key in &mut keys {
            getrandom::fill(key).expect("the kernel's random source works once the system has booted");
        }
        Verifier { rounds, salt: salt[..salt_bytes].into(), stored_key: keys[0], server_key: keys[1] }
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        let (salt, stored, server) = (text(&self.salt), text(&self.stored_key), text(&self.server_key));
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{server}", self.rounds)
    }
}

fn salted_password(password: &[u8], salt: &[u8], rounds: u32) -> Zeroizing<[u8; HASH_BYTES]> {
    let mut out = Zeroizing::new([0; HASH_BYTES]);
    let rounds = std::num::NonZeroU32::new(rounds).unwrap_or(std::num::NonZeroU32::MIN);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password, &mut *out);
    out
}

fn mac(key: &[u8], message: &[u8]) -> Zeroizing<[u8; HASH_BYTES]> {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    Zeroizing::new(tag.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

fn hash(message: &[u8]) -> [u8; HASH_BYTES] {
    digest::digest(&digest::SHA256, message).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The client's first message (RFC 5802 §7, `client-first-message`).
#[derive(Debug)]
pub struct ClientFirst {
    /// Who it wants to be.
    pub name: String,
    /// On whose behalf; empty for its own.
    pub authzid: String,
    /// The channel binding it uses.
    binding: Binding,
    gs2_header: Vec<u8>,
    bare: String,
    nonce: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Binding {
    /// `n`: the client has none.
    None,
    /// `y`: it has, and thinks that we have not.
    Unused,
    /// `p=name`
    Used(String),
}

impl ClientFirst {
    /// Reads the message. `plus`: the mechanism that the client chose is the one with channel binding;
    /// `offered`: that one was offered.
    pub fn parse(message: &[u8], plus: bool, offered: bool) -> Option<ClientFirst> {
        let text = std::str::from_utf8(message).ok()?;
        let (flag, rest) = text.split_once(',')?;
        let (authzid, bare) = rest.split_once(',')?;
        let binding = match flag {
            "n" => Binding::None,
            "y" => Binding::Unused,
            _ => Binding::Used(flag.strip_prefix("p=").filter(|n| !n.is_empty())?.to_owned()),
        };
        // RFC 5802 §6: with -PLUS it is used, without it is not; and a client that was offered -PLUS and
        // says that we have none was lied to on the way.
        if plus != matches!(binding, Binding::Used(_)) || (offered && binding == Binding::Unused) {
            return None;
        }
        let authzid = match authzid {
            "" => String::new(),
            _ => saslname(authzid.strip_prefix("a=")?)?,
        };
        let mut attributes = bare.split(',');
        let name = saslname(attributes.next()?.strip_prefix("n=")?)?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        let is_nonce = !nonce.is_empty() && nonce.bytes().all(|b| b.is_ascii_graphic());
        let gs2_header = text.as_bytes()[..text.len() - bare.len()].to_vec();
        let (bare, nonce) = (bare.to_owned(), nonce.to_owned());
        (is_nonce && !name.is_empty()).then_some(ClientFirst {
            name,
            authzid,
            binding,
            gs2_header,
            bare,
            nonce,
        })
    }
}

/// A name in which `=2C` stands for a comma and `=3D` for an equals sign.
fn saslname(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut parts = text.split('=');
    out.push_str(parts.next()?);
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        out.push(match code {
            "2C" => ',',
            "3D" => '=',
            _ => return None,
        });
        out.push_str(rest);
    }
    Some(out)
}

/// An exchange after the server's first message.
pub struct Waiting {
    first: ClientFirst,
    verifier: Verifier,
    nonce: String,
    server_first: String,
    /// `c=`, decoded, as it must be.
    bound: Vec<u8>,
}

impl Waiting {
    /// Answers the client's first message: the server's first message, and what waits for the client's
    /// final one. None where the channel has not the binding the client wants.
    pub fn begin(
        first: ClientFirst,
        verifier: Verifier,
        bindings: &Bindings,
        own_nonce: &str,
    ) -> Option<(Vec<u8>, Waiting)> {
        let mut bound = first.gs2_header.clone();
        if let Binding::Used(name) = &first.binding {
            bound.extend_from_slice(bindings.named(name)?);
        }
        let nonce = format!("{}{own_nonce}", first.nonce);
        let salt = STANDARD.encode(&verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", verifier.rounds);
        let waiting = Waiting { first, verifier, nonce, server_first, bound };
        Some((waiting.server_first.clone().into_bytes(), waiting))
    }

    pub fn name(&self) -> &str {
        &self.first.name
    }

    /// Checks the client's final message; the server's final message if its proof is right.
    pub fn finish(&self, message: &[u8]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(message).ok()?;
        let (without_proof, proof) = text.rsplit_once(",p=")?;
        let mut attributes = without_proof.split(',');
        let bound = STANDARD.decode(attributes.next()?.strip_prefix("c=")?).ok()?;
        let nonce = attributes.next()?.strip_prefix("r=")?;
        // Attributes that we do not know may follow, unless they are mandatory (RFC 5802 §5.1).
        if attributes.any(|attribute| attribute.starts_with("m=")) || nonce != self.nonce {
            return None;
        }
        verify_slices_are_equal(&bound, &self.bound).ok()?;
        let proof = <[u8; HASH_BYTES]>::try_from(STANDARD.decode(proof).ok()?).ok()?;
        let signed = format!("{},{},{without_proof}", self.first.bare, self.server_first);
        let mut client_key = mac(&self.verifier.stored_key, signed.as_bytes());
        client_key.iter_mut().zip(proof).for_each(|(key, proof)| *key ^= proof);
        verify_slices_are_equal(&hash(&*client_key), &self.verifier.stored_key).ok()?;
        let signature = mac(&self.verifier.server_key, signed.as_bytes());
        Some(format!("v={}", STANDARD.encode(*signature)).into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7677 §3.
    const FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const OWN_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn verifier() -> Verifier {
        Verifier::make(b"pencil", &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096)
    }

    fn waiting(first: &[u8], plus: bool, bindings: &Bindings) -> Option<Waiting> {
        let first = ClientFirst::parse(first, plus, true)?;
        Waiting::begin(first, verifier(), bindings, OWN_NONCE).map(|(_, waiting)| waiting)
    }

    #[test]
    fn the_exchange_of_rfc_7677() {
        let first = ClientFirst::parse(FIRST, false, true).unwrap();
        assert_eq!((first.name.as_str(), first.authzid.as_str()), ("user", ""));
        let (said, waiting) = Waiting::begin(first, verifier(), &Bindings::default(), OWN_NONCE).unwrap();
        assert_eq!(said, SERVER_FIRST.as_bytes());
        assert_eq!(waiting.finish(FINAL.as_bytes()).as_deref(), Some(SERVER_FINAL.as_bytes()));
        assert_eq!(Verifier::parse(&verifier().to_string()).unwrap().to_string(), verifier().to_string());
    }

    #[test]
    fn a_final_message_changed_anywhere_is_refused() {
        let waiting = waiting(FIRST, false, &Bindings::default()).unwrap();
        // The last character of base64 before a `=` has two bits that mean nothing; decoders refuse
        // them set, so that every change counts.
        for at in 0..FINAL.len() {
            for bit in 0..7 {
                let mut changed = FINAL.as_bytes().to_vec();
                changed[at] ^= 1 << bit;
                assert_eq!(waiting.finish(&changed), None, "{}", changed.escape_ascii());
            }
            assert_eq!(waiting.finish(&FINAL.as_bytes()[..at]), None, "cut at {at}");
        }
    }

    #[test]
    fn first_messages() {
        for (message, plus, name) in [
            ("n,,n=a,r=x", false, Some("a")),
            ("n,a=b,n=a,r=x,ext=1", false, Some("a")),
            ("n,,n=a=2Cb=3D,r=x", false, Some("a,b=")),
            ("p=tls-exporter,,n=a,r=x", true, Some("a")),
            ("p=tls-exporter,,n=a,r=x", false, None),
            ("n,,n=a,r=x", true, None),
            ("y,,n=a,r=x", true, None),
            ("y,,n=a,r=x", false, None),
            ("p=,,n=a,r=x", true, None),
            ("n,n=a,r=x", false, None),
            ("n,x,n=a,r=x", false, None),
            ("n,,m=1,n=a,r=x", false, None),
            ("n,,n=,r=x", false, None),
            ("n,,n=a", false, None),
            ("n,,n=a,r=", false, None),
            ("n,,n=a,r=x y", false, None),
            ("n,,n=a=2D,r=x", false, None),
            ("n,,n=a=,r=x", false, None),
            ("", false, None),
        ] {
            let read = ClientFirst::parse(message.as_bytes(), plus, true);
            assert_eq!(read.as_ref().map(|first| first.name.as_str()), name, "{message}");
        }
        assert!(ClientFirst::parse(b"n,,n=\xff,r=x", false, true).is_none());
        assert!(ClientFirst::parse(b"y,,n=a,r=x", false, false).is_some());
    }

    /// The final message of a client that binds with `data`.
    fn bound_final(waiting: &Waiting, header: &[u8], data: &[u8]) -> String {
        let salted = salted_password(b"pencil", &waiting.verifier.salt, 4096);
        let client_key = mac(&*salted, b"Client Key");
        let without = format!("c={},r={}", STANDARD.encode([header, data].concat()), waiting.nonce);
        let signed = format!("{},{},{without}", waiting.first.bare, waiting.server_first);
        let mut proof = mac(&hash(&*client_key), signed.as_bytes());
        proof.iter_mut().zip(*client_key).for_each(|(p, k)| *p ^= k);
        format!("{without},p={}", STANDARD.encode(*proof))
    }

    #[test]
    fn channel_binding() {
        let bindings = Bindings { exporter: Some([7; 32]), end_point: None };
        let header = b"p=tls-exporter,,";
        let first = [&header[..], b"n=user,r=abc"].concat();
        let at = waiting(&first, true, &bindings).unwrap();
        assert!(at.finish(bound_final(&at, header, &[7; 32]).as_bytes()).is_some());
        // Someone between the two has another channel on each side.
        assert!(at.finish(bound_final(&at, header, &[8; 32]).as_bytes()).is_none());
        assert!(at.finish(bound_final(&at, b"n,,", &[]).as_bytes()).is_none());
        for missing in ["tls-server-end-point", "tls-unique", "x"] {
            let first = format!("p={missing},,n=user,r=abc");
            assert!(waiting(first.as_bytes(), true, &bindings).is_none(), "{missing}");
        }
    }

    #[test]
    fn who_is_not_known_looks_known() {
        let fake = |name: &str| Verifier::fake(b"secret", name, Some(&verifier()));
        assert_eq!((fake("a").rounds, fake("a").salt.len()), (4096, 16));
        assert_eq!(fake("a").salt, fake("a").salt);
        assert_ne!(fake("a").salt, fake("b").salt);
        assert_ne!(fake("a").salt, Verifier::fake(b"other", "a", None).salt);
        assert_ne!(fake("a").stored_key, fake("a").stored_key);
    }
}
