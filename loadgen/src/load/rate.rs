//! Rates that change over a run, and the arrival times that follow from them.
//!
//! Owns: [`RateProfile`] (what `--rate` says) and [`Arrivals`], a Poisson process along it. Promises:
//! times depend on the profile and the seed only, never on the server; steps and ramps are kept
//! exactly, by inverting the expected number of arrivals. Must not: read clocks.
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::clock::Rng;
use crate::limits;
use crate::size::{parse_duration, parse_rate};

/// One piece of a profile: the rate goes evenly from `from` to `to` messages per second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    from: f64,
    to: f64,
    /// How long it lasts; none shares what the run has left.
    lasts: Option<Duration>,
}

/// Messages per second over the time of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RateProfile(Vec<Piece>);

const GRAMMAR: &str = "write 500/s, a ramp 100..1000/s, or steps 100/s@10s,500/s@10s,500..50/s@30s";

impl RateProfile {
    /// The same rate all the time.
    pub fn fixed(rate: f64) -> RateProfile {
        RateProfile(vec![Piece { from: rate, to: rate, lasts: None }])
    }
    /// The highest rate it reaches.
    pub fn peak(&self) -> f64 {
        self.0.iter().flat_map(|piece| [piece.from, piece.to]).fold(0.0, f64::max)
    }
    /// Whether it is one rate, for as long as the run lasts.
    pub fn is_fixed(&self) -> bool {
        matches!(self.0[..], [Piece { from, to, lasts: None }] if from == to)
    }
    /// Whether all pieces have their time, or one shares nothing it would have to know.
    pub fn needs_duration(&self) -> bool {
        self.0.iter().any(|piece| piece.lasts.is_none() && (self.0.len() > 1 || piece.from != piece.to))
    }
    /// How long the pieces last together, where each says so.
    pub fn lasts(&self) -> Option<Duration> {
        self.0.iter().map(|piece| piece.lasts).sum()
    }
    /// Every piece with its time, in a run of `duration`. A piece without a time shares what the others
    /// leave; the last one goes on for as long as the run does.
    fn timed(&self, duration: Option<Duration>) -> Vec<Timed> {
        let fixed: f64 = self.0.iter().filter_map(|piece| piece.lasts).map(|d| d.as_secs_f64()).sum();
        let open = self.0.iter().filter(|piece| piece.lasts.is_none()).count();
        let left = duration.map_or(f64::INFINITY, |d| (d.as_secs_f64() - fixed).max(0.0));
        let each = left / open.max(1) as f64;
        let timed = |piece: &Piece| Timed {
            from: piece.from,
            to: piece.to,
            seconds: piece.lasts.map_or(each, |d| d.as_secs_f64()),
        };
        self.0.iter().map(timed).collect()
    }
}

impl FromStr for RateProfile {
    type Err = String;
    fn from_str(text: &str) -> Result<RateProfile, String> {
        let bad = |error: String| format!("{error}; {GRAMMAR}");
        let piece = |text: &str| {
            let (rates, lasts) = match text.split_once('@') {
                Some((rates, time)) => (rates, Some(parse_duration(time).map_err(bad)?)),
                None => (text, None),
            };
            let (from, to) = rates.split_once("..").unwrap_or((rates, rates));
            Ok(Piece { from: parse_rate(from).map_err(bad)?, to: parse_rate(to).map_err(bad)?, lasts })
        };
        let pieces = text.split(',').map(|text| piece(text.trim())).collect::<Result<Vec<_>, String>>()?;
        if pieces.len() > limits::RATE_PIECES {
            return Err(format!("a rate has at most {} pieces", limits::RATE_PIECES));
        }
        Ok(RateProfile(pieces))
    }
}

impl fmt::Display for RateProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, piece) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            match piece.from == piece.to {
                true => write!(f, "{}/s", piece.from)?,
                false => write!(f, "{}..{}/s", piece.from, piece.to)?,
            }
            piece.lasts.map_or(Ok(()), |time| write!(f, "@{}ms", time.as_millis()))?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Timed {
    from: f64,
    to: f64,
    seconds: f64,
}

impl Timed {
    fn mean(&self) -> f64 {
        if self.seconds.is_finite() { f64::midpoint(self.from, self.to) } else { self.from }
    }
    /// Expected arrivals in all of it.
    fn arrivals(&self) -> f64 {
        self.mean() * self.seconds
    }
    /// When, in seconds since its start, `count` arrivals are expected.
    fn time_of(&self, count: f64) -> f64 {
        let slope = if self.seconds.is_finite() { (self.to - self.from) / self.seconds } else { 0.0 };
        // The root of slope/2·t² + from·t = count, in the form that does not cancel.
        2.0 * count / (self.from + (self.from * self.from + 2.0 * slope * count).max(0.0).sqrt())
    }
}

/// Times of a Poisson process along a profile.
pub struct Arrivals {
    rng: Rng,
    pieces: Vec<Timed>,
    /// The piece the next arrival falls into, where it begins, and how many arrivals into it.
    piece: usize,
    begins: f64,
    count: f64,
    /// The next arrival in seconds.
    next: f64,
}

impl Arrivals {
    /// The first arrival of `profile` in a run of `duration`.
    pub fn new(profile: &RateProfile, duration: Option<Duration>, seed: u64) -> Arrivals {
        let pieces = profile.timed(duration);
        let mut arrivals =
            Arrivals { rng: Rng::new(seed), pieces, piece: 0, begins: 0.0, count: 0.0, next: 0.0 };
        arrivals.advance();
        arrivals
    }
    /// When the next message is to be sent, in run time.
    pub fn next_us(&self) -> u64 {
        (self.next * 1e6) as u64
    }
    /// Goes on to the arrival after it.
    pub fn advance(&mut self) {
        self.count -= self.rng.unit().ln();
        while self.piece + 1 < self.pieces.len() {
            let piece = self.pieces[self.piece];
            if self.count < piece.arrivals() {
                break;
            }
            self.count -= piece.arrivals();
            self.begins += piece.seconds;
            self.piece += 1;
        }
        let mut piece = self.pieces[self.piece];
        let beyond = self.count - piece.arrivals();
        self.next = if beyond > 0.0 {
            // Behind the last piece its final rate goes on.
            piece.from = piece.to;
            self.begins + piece.seconds + beyond / piece.to
        } else {
            self.begins + piece.time_of(self.count)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(text: &str, duration_sec: Option<u64>, until: f64) -> Vec<f64> {
        let profile: RateProfile = text.parse().unwrap();
        let mut arrivals = Arrivals::new(&profile, duration_sec.map(Duration::from_secs), 7);
        let mut times = Vec::new();
        while arrivals.next < until {
            times.push(arrivals.next);
            arrivals.advance();
        }
        assert!(times.is_sorted());
        times
    }

    #[test]
    fn arrivals_follow_the_profile() {
        // Profile, duration, then (from, to, expected number) in seconds.
        type Case = (&'static str, Option<u64>, &'static [(f64, f64, f64)]);
        let table: [Case; 5] = [
            ("1000/s", None, &[(0.0, 5.0, 5000.0), (5.0, 10.0, 5000.0)]),
            ("500/s@4s,2000/s@4s", None, &[(0.0, 4.0, 2000.0), (4.0, 8.0, 8000.0), (8.0, 9.0, 2000.0)]),
            ("0.001..2000/s", Some(10), &[(0.0, 5.0, 2500.0), (5.0, 10.0, 7500.0)]),
            ("2000..1000/s@10s", None, &[(0.0, 5.0, 8750.0), (5.0, 10.0, 6250.0), (10.0, 12.0, 2000.0)]),
            ("1000/s,3000/s", Some(6), &[(0.0, 3.0, 3000.0), (3.0, 6.0, 9000.0)]),
        ];
        for (text, duration, windows) in table {
            let times = times(text, duration, windows.last().unwrap().1);
            for &(from, to, want) in windows {
                let got = times.iter().filter(|&&t| (from..to).contains(&t)).count() as f64;
                // Five standard deviations of a Poisson count.
                assert!((got - want).abs() < 5.0 * f64::sqrt(want), "{text} {from}..{to}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn profiles_as_text() {
        for text in ["500/s", "1..10/s", "100/s@10000ms,500..50/s@30000ms"] {
            assert_eq!(text.parse::<RateProfile>().unwrap().to_string(), text);
        }
        for text in ["", "0/s", "1..0/s", "10/s@", "10/s@3", "a,b"] {
            assert!(text.parse::<RateProfile>().is_err(), "{text}");
        }
        let needs = |text: &str| text.parse::<RateProfile>().unwrap().needs_duration();
        assert!(needs("1..5/s") && needs("1/s,2/s") && !needs("7/s") && !needs("1/s@1s,2..3/s@1s"));
    }
}
