//! Targets for who a client is: PROXY headers, XCLIENT, SASL exchanges.
use std::sync::{Arc, OnceLock};

use ringpost::auth::{Bindings, Exchange, Mechanism, Next, Secret, Users};
use ringpost::limits;
use ringpost::smtp::{proxy, xclient};

/// The first bytes of a connection through a proxy: the verdict is the same however they were split, and
/// comes before too many of them.
pub fn proxy(data: &[u8]) {
    let whole = proxy::read(data);
    let cuts = (0..=data.len()).take(limits::PROXY_HEADER_BYTES + 1);
    let first = cuts.map(|cut| proxy::read(&data[..cut])).find(|verdict| *verdict != Ok(None));
    match first {
        Some(first) => assert_eq!(first, whole, "an early verdict is not the last one"),
        None => assert!(whole == Ok(None) && data.len() < limits::PROXY_HEADER_BYTES, "no verdict"),
    }
    if let Ok(Some(header)) = whole {
        assert!((8..=limits::PROXY_HEADER_BYTES.min(data.len())).contains(&header.bytes));
        if let proxy::Origin::Client(client) = header.origin {
            assert_eq!(client.ip(), client.ip().to_canonical());
        }
    }
    if let Some(said) = xclient::parse(data) {
        assert!(said.addr.is_none_or(|addr| addr == addr.to_canonical()));
        assert!(said.helo.is_none_or(|helo| helo.bytes().all(|b| matches!(b, b' '..=b'~'))));
    }
}

/// `user` has the password `pencil` (RFC 7677 §3).
const USERS: &str = "user:SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU= from=*";

/// An exchange: a byte for the mechanism and whether there is an initial response, then the client's
/// messages with line feeds between them.
pub fn sasl(data: &[u8]) {
    static KNOWN: OnceLock<Arc<Users>> = OnceLock::new();
    let users = KNOWN.get_or_init(|| {
        Arc::new(Users::parse(USERS, Secret([7; 16]), |_| Err(String::new())).expect("well-formed"))
    });
    let Some((flags, said)) = data.split_first() else { return };
    let mechanism = Mechanism::ALL[usize::from(flags & 3)];
    let bindings = Bindings { exporter: (flags & 4 == 0).then_some([9; 32]), end_point: None };
    let mut messages = said.split(|b| *b == b'\n');
    let mut exchange = Exchange::new(mechanism, users.clone(), bindings);
    let initial = if flags & 8 == 0 { messages.next() } else { None };
    let mut next = exchange.begin(initial);
    let mut turns = 0;
    let knows = |word: &[u8]| said.windows(word.len()).any(|window| window == word);
    loop {
        assert!(exchange.name().len() <= limits::AUTH_NAME_BYTES.max(said.len()));
        next = match next {
            Next::Challenge(challenge) => {
                turns += 1;
                assert!(turns <= 3 && challenge.len() <= said.len() + 200, "{} bytes", challenge.len());
                match messages.next() {
                    Some(message) => exchange.step(message),
                    None => return,
                }
            }
            Next::Check(attempt) => {
                if let Some(user) = attempt.check() {
                    assert!(&*user.name == "user" && knows(b"pencil"), "a login without the password");
                }
                break;
            }
            // The nonce is new each time, so that no proof that was written down can fit.
            Next::Success(_) => panic!("a proof that nobody made"),
            Next::Wrong | Next::Malformed => break,
        }
    }
    assert!(matches!(exchange.step(b""), Next::Malformed), "it goes on after its end");
}
