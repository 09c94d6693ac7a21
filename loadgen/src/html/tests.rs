//! The page of a run with everything in it, as text and in a real browser.
use std::collections::BTreeMap;
use std::process::Command;

use super::*;
use crate::process::{ProcessReport, Sample};
use crate::report::{Percentiles, Stages};
use crate::timeline::Point;

fn report() -> LoadReport {
    let p = Percentiles {
        count: 31_234,
        mean_us: 4321.0,
        p50_us: 3_800,
        p90_us: 9_100,
        p99_us: 41_000,
        p999_us: 380_000,
        max_us: 1_204_000,
    };
    let point = |n: u32| {
        let wave = (f64::from(n) / 4.0).sin();
        let is_stalled = n == 21 || n == 22;
        Point {
            at_sec: f64::from(n),
            seconds: 1.0,
            accepted: if is_stalled { 0 } else { (700.0 + 200.0 * wave) as u64 },
            p50_us: (4000.0 + 1000.0 * wave) as u64,
            p90_us: 9_000 + u64::from(n) * 100,
            p99_us: 40_000,
            max_us: if n == 23 { 1_204_000 } else { 60_000 },
            errors: if n.is_multiple_of(7) {
                BTreeMap::from([("rcpt 451".into(), 12), ("data 421".into(), 3)])
            } else {
                BTreeMap::new()
            },
        }
    };
    let sample = |n: u32| Sample {
        at_sec: f64::from(n),
        cpu_sec: f64::from(n) * 0.42 + (f64::from(n) / 4.0).sin(),
        rss_bytes: (30 << 20) + u64::from(n) * (1 << 19),
    };
    LoadReport {
        run: "0000beef".into(),
        target: "127.0.0.1:2525".into(),
        workload: "messages of 4096 bytes, at 700/s, 64 connections".into(),
        accepted: 31_234,
        rejected: 75,
        seconds: 45.0,
        rate: 694.1,
        rate_held: Some(false),
        late_share: 0.041,
        late: p,
        latency: Stages { connect: p, tls: Percentiles::default(), mail: p, rcpt: p, data: p, whole: p },
        errors: BTreeMap::from([("rcpt 451".into(), 60), ("data 421".into(), 15)]),
        error_samples: BTreeMap::from([(
            "rcpt 451".into(),
            "4.7.1 <script>alert(1)</script> & later".into(),
        )]),
        timeline: (0..45).map(point).collect(),
        process: Some(ProcessReport {
            pids: vec![1],
            cpu_seconds: 19.0,
            cpu_us_per_message: 608.3,
            peak_rss_bytes: 54 << 20,
            samples: (0..45).map(sample).collect(),
        }),
        warnings: vec![
            "the rate could not be held: 4.1 % of the messages were begun more than 10 ms late".into(),
        ],
        ..LoadReport::default()
    }
}

#[test]
fn the_page_stands_alone_and_escapes_what_servers_say() {
    let page = page(&report());
    assert_eq!(page.matches("<svg").count(), 5, "rate, latency, errors, processors, memory");
    for outside in ["http:", "https:", "<script", "src=", "@import", "NaN"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("prefers-color-scheme:dark"));
    assert!(page.contains("31\u{202f}234"));
    // A run without anything makes a page too.
    assert!(super::page(&LoadReport::default()).contains("</html>"));
}

#[test]
fn numbers_in_groups() {
    for (number, want) in
        [(0, "0"), (999, "999"), (1000, "1\u{202f}000"), (1_234_567, "1\u{202f}234\u{202f}567")]
    {
        assert_eq!(grouped(number), want);
    }
}

/// Draws the page in light and dark and looks at its pixels: the right background, and ink on it.
#[test]
fn a_browser_draws_it_in_light_and_dark() {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let works = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
    let Some(browser) = names.iter().find(works) else {
        println!("skipped: no chromium here");
        return;
    };
    let dir = std::env::temp_dir().join(format!("ringpost-page-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("report.html");
    std::fs::write(&file, page(&report())).unwrap();
    let mut sizes = Vec::new();
    for scheme in ["light", "dark"] {
        let picture = dir.join(format!("{scheme}.png"));
        let mut command = Command::new(browser);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
        command.arg("--window-size=1000,1900");
        command.arg(format!("--user-data-dir={}", dir.join(scheme).display()));
        if scheme == "dark" {
            command.arg("--blink-settings=preferredColorScheme=0");
        } else {
            command.arg("--blink-settings=preferredColorScheme=1");
        }
        command.arg(format!("--screenshot={}", picture.display()));
        let output = command.arg(format!("file://{}", file.display())).output().unwrap();
        let drawn = std::fs::read(&picture);
        let drawn = drawn.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        assert!(drawn.starts_with(b"\x89PNG"));
        sizes.push(drawn);
    }
    // An empty page of this size compresses to a few kilobytes; the two schemes differ.
    assert!(
        sizes.iter().all(|picture| picture.len() > 40_000),
        "{:?}",
        sizes.iter().map(Vec::len).collect::<Vec<_>>()
    );
    assert_ne!(sizes[0], sizes[1]);
    if let Some(keep) = std::env::var_os("RINGPOST_TEST_KEEP_PAGE") {
        let _ = std::fs::remove_dir_all(&keep);
        std::fs::create_dir_all(&keep).unwrap();
        for name in ["report.html", "light.png", "dark.png"] {
            std::fs::copy(dir.join(name), std::path::Path::new(&keep).join(name)).unwrap();
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
