//! Precedence, validation and the printed form, as tables.
use super::*;

fn system() -> System {
    System { hostname: "mail.example.com".into(), cores: 4, memory_bytes: 8 << 30 }
}

fn flags(list: &[(&'static str, &[&str])]) -> Given {
    list.iter().map(|(name, texts)| (*name, texts.iter().map(|&t| t.to_owned()).collect())).collect()
}

/// The configuration made of flags alone.
fn of_flags(list: &[(&'static str, &[&str])]) -> Result<Config, Vec<Problem>> {
    let (effective, problems) = Effective::gather(flags(list), &|_| None, None, &system());
    assert_eq!(problems, []);
    effective.config()
}

#[test]
fn every_default_is_valid_and_equals_its_limit() {
    let config = of_flags(&[]).expect("defaults are valid");
    assert_eq!(config.listen, ["127.0.0.1:2525".parse().expect("an address")]);
    assert_eq!(config.hostname, "mail.example.com");
    assert_eq!(config.spool, PathBuf::from("./spool"));
    assert_eq!((config.workers, config.durability), (4, Durability::Disk));
    assert_eq!(config.segment_bytes, crate::limits::DEFAULT_SEGMENT_BYTES);
    assert_eq!((config.spool_limit_bytes, config.memory_limit_bytes), (0, 4 << 30));
    assert!(config.relay_from.iter().all(|n| n.addr.is_loopback()) && config.relay_from.len() == 2);
    assert_eq!((config.mx_port, config.allow_private_mx), (25, false));
    assert_eq!(config.max_message_bytes, crate::limits::DEFAULT_MAX_MESSAGE_BYTES);
    assert_eq!(config.max_recipients, crate::limits::DEFAULT_MAX_RECIPIENTS);
    let clients = config.client_limits;
    assert_eq!(clients.max_connections, crate::limits::DEFAULT_MAX_CONNECTIONS);
    assert_eq!(clients.max_connections_per_ip, crate::limits::DEFAULT_MAX_CONNECTIONS_PER_IP);
    assert!(config.tls_pairs.is_empty() && config.submission.is_empty() && config.local_domains.is_empty());
    assert!(config.proxy_from.is_empty() && config.xclient_from.is_empty() && config.greet_pause.is_zero());
    assert_eq!(config.command_wait, crate::limits::DEFAULT_COMMAND_WAIT);
    assert_eq!(config.data_wait, crate::limits::DEFAULT_DATA_WAIT);
    assert_eq!(config.destination_connections, crate::limits::DEFAULT_DESTINATION_CONNECTIONS);
    assert_eq!(config.messages_per_connection, crate::limits::DEFAULT_MESSAGES_PER_CONNECTION);
    assert_eq!(
        config.retry_schedule.iter().map(Duration::as_secs).collect::<Vec<_>>(),
        [60, 300, 900, 1800, 3600, 7200, 14400]
    );
    assert_eq!(config.max_age, crate::limits::DEFAULT_MAX_AGE);
    assert_eq!(config.shutdown_grace, crate::limits::DEFAULT_SHUTDOWN_GRACE);
    assert!(config.sources.is_empty() && config.dns.is_empty());
    assert!(config.user.is_none() && config.control.is_none() && config.event_log.is_none());
    assert_eq!(config.warnings(), Vec::<String>::new());
}

#[test]
fn the_highest_layer_wins_each_setting_whole() {
    let file = "listen = ['127.0.0.1:1', '127.0.0.1:2']\nmx-port = 1\nworkers = 1\n\
                relay-from = []\nallow-private-mx = true\nmax-age = '1h'";
    let variable = |name: &str| match name {
        "RINGPOST_LISTEN" => Some("127.0.0.1:3  127.0.0.1:4".to_owned()),
        "RINGPOST_MX_PORT" => Some("2".to_owned()),
        "RINGPOST_WORKERS" => Some("2".to_owned()),
        "RINGPOST_MAX_AGE" => Some(String::new()),
        _ => None,
    };
    let given = flags(&[("listen", &["127.0.0.1:5"]), ("workers", &["3"]), ("allow-private-mx", &["false"])]);
    let (effective, problems) = Effective::gather(given, &variable, Some(("r.toml", file)), &system());
    assert_eq!(problems, []);
    for (name, texts, origin) in [
        ("listen", &["127.0.0.1:5"][..], Origin::Flag),
        ("workers", &["3"], Origin::Flag),
        ("allow-private-mx", &["false"], Origin::Flag),
        ("mx-port", &["2"], Origin::Environment),
        ("relay-from", &[], Origin::File),
        ("max-age", &["1h"], Origin::File),
        ("max-recipients", &["1000"], Origin::Default),
    ] {
        let entry = effective.entry(name);
        assert_eq!(
            (&entry.texts[..], entry.origin),
            (&texts.iter().map(|&t| t.to_owned()).collect::<Vec<_>>()[..], origin),
            "{name}"
        );
    }
    let config = effective.config().expect("valid");
    assert!(config.relay_from.is_empty() && !config.allow_private_mx);

    let (effective, _) = Effective::gather(Given::new(), &variable, Some(("r.toml", file)), &system());
    assert_eq!(effective.entry("listen").texts, ["127.0.0.1:3", "127.0.0.1:4"]);
}

#[test]
fn what_is_wrong_is_said_with_the_remedy() {
    for (name, texts, complaint) in [
        ("workers", &["0"][..], "--workers: 0 is too small: write 1 or more"),
        ("workers", &["256"], "--workers: 256 is too large: write 255 or less"),
        ("workers", &["two"], "--workers: \"two\" is not a whole number"),
        ("durability", &["ram"], "--durability: \"ram\" is not a durability: write disk, os or memory"),
        ("segment-size", &["512KiB"], "--segment-size: 512KiB is too small: write 1MiB or more"),
        ("segment-size", &["2GiB"], "--segment-size: 2GiB is too large: write 1GiB or less"),
        ("segment-size", &["1048577"], "--segment-size: must be a multiple of 4KiB: write 1MiB"),
        (
            "spool-limit",
            &["1GiB"],
            "--spool-limit: is too small: 4 workers with segments of 64MiB need 1536MiB (6 each)",
        ),
        ("memory-limit", &["1MiB"], "--memory-limit: 1MiB is too small: write 32MiB or more"),
        ("memory-limit", &["64MiB"], "--memory-limit: is too small: 4 workers need 128MiB"),
        ("hostname", &["bad_name"], "--hostname: \"bad_name\" is not a host name: write a full name"),
        ("listen", &[], "--listen: needs at least one address"),
        ("listen", &["localhost:25"], "--listen: \"localhost:25\" is not ADDR:PORT: write an address"),
        ("listen", &["[::1]:1", "[::1]:1"], "--listen: [::1]:1 is named twice"),
        (
            "relay-from",
            &["10.0.0.1/8"],
            "--relay-from: \"10.0.0.1/8\" has address bits beyond /8: write 10.0.0.0/8",
        ),
        ("dns", &["dns.example"], "--dns: \"dns.example\" is not ADDR:PORT"),
        ("mx-port", &["0"], "--mx-port: 0 is too small"),
        ("mx-port", &["65536"], "--mx-port: 65536 is too large"),
        ("max-message-size", &["2GiB"], "--max-message-size: 2GiB is too large: write 256MiB or less"),
        ("max-recipients", &["65536"], "--max-recipients: 65536 is too large"),
        ("retry-schedule", &["1m,,5m"], "--retry-schedule: \"\" is not a duration"),
        ("retry-schedule", &["1m,0s"], "--retry-schedule: step 2 is zero"),
        ("max-age", &["5"], "--max-age: \"5\" is not a duration: write a whole number with ms, s, m, h or d"),
        ("max-age", &["0"], "--max-age: 0ms is too small: write 1s or more"),
        ("source", &["192.0.2.1"], "--source: \"192.0.2.1\" is not ADDR,EHLO-NAME"),
        ("source", &["192.0.2.1,a.example", "192.0.2.1,b.example"], "--source: names 192.0.2.1 twice"),
        (
            "control",
            &["0.0.0.0:8025"],
            "--control: is reachable from other machines: give --control-token-file",
        ),
        ("control", &["127.0.0.1:2525"], "--control: is also an address for mail"),
        ("submission", &["127.0.0.1:587"], "--submission: needs TLS: give --tls-cert"),
        (
            "tls-cert",
            &["c.pem"],
            "--tls-key (not given; the default): there are 1 --tls-cert and 0 --tls-key",
        ),
        ("tls-client-ca", &["ca.pem"], "--tls-client-ca: is of no use without TLS"),
        ("auth-file", &["users"], "--auth-file: is of no use without TLS"),
        ("local-domain", &["a..b"], "--local-domain: \"a..b\" is not a domain"),
        ("postmaster", &["root"], "--postmaster: \"root\" is not an address"),
        ("greet-pause", &["5m"], "--greet-pause: 5m is too large: write 1m or less"),
        ("error-rate-per-ip", &["many"], "--error-rate-per-ip: \"many\" is not a rate"),
        ("shutdown-grace", &["2h"], "--shutdown-grace: 2h is too large: write 1h or less"),
        ("spool", &[""], "--spool: is empty"),
    ] {
        let problems = of_flags(&[(name, texts)]).expect_err(complaint);
        // A submission listener lacks two things.
        assert_eq!(problems.len(), 1 + usize::from(name == "submission"), "{name} {texts:?}: {problems:?}");
        assert!(problems[0].0.starts_with(complaint), "{}\nexpected: {complaint}", problems[0]);
    }
}

#[test]
fn relations_that_hold_are_accepted() {
    for list in [
        &[
            ("submission", &["127.0.0.1:587"][..]),
            ("submissions", &["127.0.0.1:465"]),
            ("listen", &[]),
            ("tls-cert", &["a.pem", "b.pem"]),
            ("tls-key", &["a.key", "b.key"]),
            ("auth-file", &["users"]),
            ("message-rate-per-ip", &["100/m"]),
            ("connection-rate-per-ip", &["none"]),
        ],
        &[("workers", &["1"][..]), ("spool-limit", &["384MiB"])][..],
        &[("segment-size", &["1MiB"]), ("spool-limit", &["100MiB"]), ("workers", &["1"])],
        &[("control", &["127.0.0.1:8025"])],
        &[("control", &["0.0.0.0:8025"]), ("control-token-file", &["token"])],
        &[("listen", &["127.0.0.1:0", "127.0.0.1:0"])],
        &[("durability", &["memory"])],
        &[("retry-schedule", &["100ms,1s"])],
    ] {
        assert!(of_flags(list).is_ok(), "{list:?}: {:?}", of_flags(list));
    }
}

#[test]
fn a_complaint_names_the_layer_that_was_wrong() {
    let variable = |name: &str| (name == "RINGPOST_MAX_AGE").then(|| "old".to_owned());
    let odd = System { hostname: "bad_name".into(), ..system() };
    let (effective, _) = Effective::gather(Given::new(), &variable, Some(("r.toml", "workers = 0")), &odd);
    let problems: Vec<String> =
        effective.config().expect_err("three problems").into_iter().map(|p| p.0).collect();
    for (problem, start) in problems.iter().zip([
        "--hostname (not given; the default): ",
        "r.toml: workers: ",
        "RINGPOST_MAX_AGE: ",
    ]) {
        assert!(problem.starts_with(start), "{problem}");
    }
    assert_eq!(problems.len(), 3);
}

#[test]
fn what_is_rarely_meant_is_warned_of() {
    for (name, text, part) in [
        ("relay-from", "0.0.0.0/0", "open relay"),
        ("durability", "memory", "is lost"),
        ("hostname", "vm", "no domain"),
        ("control", "127.0.0.1:1", "health probes only"),
        ("control-token-file", "token", "no effect"),
        ("max-message-size", "10KiB", "64 KiB"),
        ("max-recipients", "1", "100"),
    ] {
        let warnings = of_flags(&[(name, &[text])]).expect("valid").warnings();
        assert!(warnings.len() == 1 && warnings[0].contains(part), "{name}: {warnings:?}");
    }
}

#[test]
fn the_printed_form_makes_the_same_configuration() {
    let given = flags(&[
        ("listen", &["127.0.0.1:1", "[::1]:1"]),
        ("relay-from", &[]),
        ("source", &["192.0.2.1,out.example"]),
        ("allow-private-mx", &["true"]),
        ("spool", &["a \"quoted\" \\ path"]),
        ("max-age", &["90m"]),
    ]);
    let (effective, _) = Effective::gather(given, &|_| None, None, &system());
    let printed = effective.to_toml();
    let other = System { hostname: "other.example".into(), cores: 1, memory_bytes: 1 << 30 };
    let (again, problems) = Effective::gather(Given::new(), &|_| None, Some(("r.toml", &printed)), &other);
    assert_eq!(problems, [], "{printed}");
    for (a, b) in effective.entries.iter().zip(&again.entries) {
        assert_eq!(a.texts, b.texts, "{}", a.setting.name);
    }
    assert!(
        printed.lines().any(|l| l.starts_with("max-age = \"90m\"") && l.ends_with("# flag")),
        "{printed}"
    );
    assert_eq!(
        effective.to_json()["allow-private-mx"],
        serde_json::json!({ "value": true, "origin": "flag" })
    );
    assert_eq!(effective.to_json()["user"], serde_json::json!({ "value": null, "origin": "default" }));
}

#[test]
fn names_are_unique_and_fit_for_flags() {
    for (i, setting) in SETTINGS.iter().enumerate() {
        assert!(setting.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{}", setting.name);
        assert!(SETTINGS[..i].iter().all(|s| s.name != setting.name), "{}", setting.name);
        assert!(!setting.help.is_empty() && !setting.help.ends_with('.'), "{}", setting.name);
    }
    assert_eq!(
        Setting::find("max-connections-per-ip").map(Setting::variable).as_deref(),
        Some("RINGPOST_MAX_CONNECTIONS_PER_IP")
    );
}

#[test]
fn the_machine_is_looked_at_without_changing_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let write = |name: &str, text: &str, mode: u32| {
        std::fs::write(path(name), text).expect("written");
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).expect("changed");
    };
    write("file", "", 0o600);
    write("token", "0123456789abcdef\nrest", 0o600);
    write("short", "0123456789abcde\n", 0o600);
    write("open", "0123456789abcdef", 0o644);
    for (name, file, complaint) in [
        ("spool", "new", ""),
        ("spool", "no/such/parent", "does not exist: make it first"),
        ("spool", "file", "is not a directory"),
        ("control-token-file", "token", ""),
        ("control-token-file", "none", "--control-token-file: "),
        ("control-token-file", "short", "16 or more"),
        ("control-token-file", "open", "chmod 600"),
        ("event-log", "file", ""),
        ("event-log", "new.json", ""),
        ("event-log", "no/new.json", "does not exist"),
        ("event-log", ".", "is a directory"),
    ] {
        let spool = path("new");
        let value = path(file);
        let mut given = vec![("spool", std::slice::from_ref(&spool))];
        given.retain(|(n, _)| *n != name);
        given.push((name, std::slice::from_ref(&value)));
        let given = given.into_iter().map(|(n, t)| (n, t.to_vec())).collect();
        let (effective, _) = Effective::gather(given, &|_| None, None, &system());
        let problems = inspect(&effective.config().expect("valid"));
        match complaint {
            "" => assert_eq!(problems, [], "{name} {file}"),
            part => {
                assert!(problems.len() == 1 && problems[0].0.contains(part), "{name} {file}: {problems:?}")
            }
        }
    }
    assert!(!dir.path().join("new").exists());
    assert_eq!(read_token(&dir.path().join("token")).as_deref(), Ok("0123456789abcdef"));
}

#[test]
fn routes_are_parsed_with_the_rest() {
    assert!(of_flags(&[("route", &["example.com=10.0.0.1:25", "*=127.0.0.1:2526"])]).is_ok());
    let problems = of_flags(&[("route", &["*=127.0.0.1:2526", "example.com"])]).expect_err("no target");
    assert!(problems.len() == 1 && problems[0].0.starts_with("--route: \"example.com\""), "{problems:?}");
}
