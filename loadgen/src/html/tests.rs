//! The page of a run with everything in it, as text and in a real browser.
use std::collections::BTreeMap;
use std::process::Command;

use super::*;
use crate::check::Verdict;
use crate::process::{ProcessReport, Sample};
use crate::report::{Percentiles, SinkReport, Stages};
use crate::timeline::Point;

fn report() -> LoadReport {
    let p = Percentiles {
        count: 31_234,
        mean_us: 4321.0,
        min_us: 900,
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
            is_warmup: n < 5,
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
        warmup_seconds: 5.0,
        due_rate: Some(700.0),
        rate_held: Some(false),
        late_share: 0.041,
        late: p,
        latency: Stages {
            connect: p,
            tls: Percentiles::default(),
            mail: p,
            rcpt: p,
            data: p,
            whole: p,
            end_to_end: p,
        },
        sink: Some(SinkReport { latency: p, cpu_us_per_message: 5.1, ..SinkReport::default() }),
        verdict: Some(Verdict { acknowledged: 31_234, arrived: 31_230, missing: 4, ..Verdict::default() }),
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
    assert_eq!(page.matches("class=\"warmup\"").count(), 5);
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

/// A picture, as pixels of red, green and blue.
struct Picture {
    width: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn read(file: std::fs::File) -> Picture {
        let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        let samples = info.color_type.samples();
        assert!(samples >= 3 && info.bit_depth == png::BitDepth::Eight, "{info:?}");
        Picture {
            width: info.width as usize,
            pixels: bytes.chunks_exact(samples).map(|p| [p[0], p[1], p[2]]).collect(),
        }
    }
    /// Rows on which the colour stands at least so many times.
    fn rows_with(&self, colour: [u8; 3], least: usize) -> usize {
        let is_near = |pixel: &&[u8; 3]| pixel.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) < 24);
        self.pixels.chunks(self.width).filter(|row| row.iter().filter(is_near).count() >= least).count()
    }
}

/// The scheme's background at the edges and behind all, text and tiles on it, and the first colour of
/// the plots where lines were drawn.
fn look_at(picture: &Picture, scheme: &str, background: [u8; 3], line: [u8; 3]) {
    let all = picture.pixels.len();
    let rest = picture.pixels.iter().filter(|pixel| **pixel == background).count() as f64 / all as f64;
    assert_eq!([picture.pixels[0], picture.pixels[all - 1]], [background; 2], "{scheme}");
    assert!((0.5..0.97).contains(&rest), "{scheme}: {rest} of the picture is background");
    // Two plots of the five have lines in this colour, over most of their height and width.
    let rows = picture.rows_with(line, 1);
    assert!(rows > 100, "{scheme}: lines on {rows} rows only");
}

/// Draws the page in light and dark and looks at its pixels: the right background, and ink on it.
#[test]
fn a_browser_draws_it_in_light_and_dark() {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let works = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
    let Some(browser) = names.iter().find(works) else {
        assert!(
            std::env::var_os("RINGPOST_TEST_REQUIRE").is_none(),
            "RINGPOST_TEST_REQUIRE: no chromium here"
        );
        println!("skipped: no chromium here");
        return;
    };
    let dir = std::env::temp_dir().join(format!("ringpost-page-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("report.html");
    std::fs::write(&file, page(&report())).unwrap();
    for (scheme, background, line) in
        [("light", [0xff, 0xff, 0xff], [0x25, 0x63, 0xc9]), ("dark", [0x14, 0x18, 0x1d], [0x6e, 0xa3, 0xf5])]
    {
        let picture = dir.join(format!("{scheme}.png"));
        let mut command = Command::new(browser);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]);
        command.args(["--window-size=1000,1900", "--virtual-time-budget=1000"]);
        command.arg(format!("--user-data-dir={}", dir.join(scheme).display()));
        command
            .arg(format!("--blink-settings=preferredColorScheme={}", if scheme == "dark" { 0 } else { 1 }));
        command.arg(format!("--screenshot={}", picture.display()));
        let output = command.arg(format!("file://{}", file.display())).output().unwrap();
        let drawn = std::fs::File::open(&picture);
        let drawn = drawn.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        look_at(&Picture::read(drawn), scheme, background, line);
    }
    if let Some(keep) = std::env::var_os("RINGPOST_TEST_KEEP_PAGE") {
        let _ = std::fs::remove_dir_all(&keep);
        std::fs::create_dir_all(&keep).unwrap();
        for name in ["report.html", "light.png", "dark.png"] {
            std::fs::copy(dir.join(name), std::path::Path::new(&keep).join(name)).unwrap();
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
