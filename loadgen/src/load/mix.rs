//! What messages of a run look like and where they go: sizes and domains after a distribution.
//!
//! Owns: [`SizeMix`] (what `--sizes` says), [`Classes`] (which prepared message a number uses) and
//! [`Domains`] (which domain a delivery uses). Promises: both depend on the seed and the number
//! only, so that a run can be repeated, whatever thread sends it. Must not: prepare messages.
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, ensure};

use crate::clock::Rng;
use crate::pick::Pick;
use crate::size::parse_size;
use crate::{limits, stamp};

/// Sizes after a distribution.
#[derive(Clone, Debug, PartialEq)]
pub enum SizeMix {
    /// Every size between the two is as likely.
    Uniform(u64, u64),
    /// The logarithm of the size is normal: half of the messages are larger than the median.
    LogNormal { median: u64, sigma: f64 },
    /// A file with a size on each line, and a weight behind it or not.
    File(PathBuf),
}

const GRAMMAR: &str = "write uniform:1KiB-64KiB, lognormal:8KiB,1.2 or file:PATH";

impl FromStr for SizeMix {
    type Err = String;
    fn from_str(text: &str) -> Result<SizeMix, String> {
        let bad = || format!("'{text}' is not a distribution of sizes: {GRAMMAR}");
        match text.split_once(':').ok_or_else(bad)? {
            ("uniform", range) => {
                let (least, most) = range.split_once('-').ok_or_else(bad)?;
                let (least, most) = (parse_size(least)?, parse_size(most)?);
                if least <= most { Ok(SizeMix::Uniform(least, most)) } else { Err(bad()) }
            }
            ("lognormal", parts) => {
                let (median, sigma) = parts.split_once(',').ok_or_else(bad)?;
                let sigma = sigma.parse::<f64>().ok().filter(|s| (0.0..=4.0).contains(s)).ok_or_else(bad)?;
                Ok(SizeMix::LogNormal { median: parse_size(median)?, sigma })
            }
            ("file", path) => Ok(SizeMix::File(path.into())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for SizeMix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SizeMix::Uniform(least, most) => write!(f, "{least} to {most} bytes"),
            SizeMix::LogNormal { median, sigma } => {
                write!(f, "log-normal sizes (median {median} bytes, sigma {sigma})")
            }
            SizeMix::File(path) => write!(f, "the sizes in {}", path.display()),
        }
    }
}

impl SizeMix {
    /// The sizes that stand for the distribution, each as likely as the others: the quantiles in
    /// the middle of [`limits::SIZE_CLASSES`] equal parts.
    pub fn quantiles(&self) -> anyhow::Result<Vec<u64>> {
        let parts = limits::SIZE_CLASSES;
        let middles = (0..parts).map(|part| (f64::from(part) + 0.5) / f64::from(parts));
        Ok(match self {
            SizeMix::Uniform(least, most) => {
                middles.map(|q| least + (q * ((most - least) as f64 + 1.0)) as u64).collect()
            }
            SizeMix::LogNormal { median, sigma } => {
                middles.map(|q| (*median as f64 * (sigma * normal_quantile(q)).exp()) as u64).collect()
            }
            SizeMix::File(path) => {
                let mut sizes: Vec<(u64, f64)> = read_weighted(path, parse_size)?;
                sizes.sort_by_key(|&(size, _)| size);
                let sum: f64 = sizes.iter().map(|(_, weight)| weight).sum();
                let mut passed = 0.0;
                let mut rest = sizes.iter().peekable();
                middles
                    .map(|q| {
                        while let Some(&&(size, weight)) = rest.peek() {
                            if passed + weight >= q * sum {
                                return size;
                            }
                            passed += weight;
                            rest.next();
                        }
                        sizes[sizes.len() - 1].0
                    })
                    .collect()
            }
        })
    }
}

/// The point below which `q` of a normal distribution lies (Acklam's rational approximation, error
/// below 1.2e-9 relative).
fn normal_quantile(q: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 6] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 5] = [
        7.784_695_709_041_462e-3,
        3.224_671_290_700_398e-1,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
        1.0,
    ];
    let poly = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, k| sum * x + k);
    if q < 0.02425 {
        let r = (-2.0 * q.ln()).sqrt();
        poly(&C, r) / poly(&D, r)
    } else if q > 1.0 - 0.02425 {
        -normal_quantile(1.0 - q)
    } else {
        let d = q - 0.5;
        poly(&A, d * d) * d / poly(&B, d * d)
    }
}

/// Lines of `thing [weight]`; empty ones and those with `#` in front do not count.
fn read_weighted<T>(path: &Path, parse: impl Fn(&str) -> Result<T, String>) -> anyhow::Result<Vec<(T, f64)>> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
    let mut things = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let Some(thing) = words.next().filter(|word| !word.starts_with('#')) else { continue };
        let weight = words.next().map_or(Some(1.0), |word| word.parse::<f64>().ok());
        let weight = weight.filter(|w| w.is_finite() && *w > 0.0 && words.next().is_none());
        let place = || format!("{name}, line {}", index + 1);
        let weight = weight.with_context(|| format!("{}: write a value and a weight", place()))?;
        let thing = parse(thing).map_err(anyhow::Error::msg).with_context(place)?;
        things.push((thing, weight));
    }
    ensure!(!things.is_empty(), "{name} has no line with a value");
    ensure!(things.len() <= limits::DOMAINS as usize, "{name} has more than {} lines", limits::DOMAINS);
    Ok(things)
}

/// Which of the prepared messages a message number uses.
#[derive(Clone, Debug)]
pub struct Classes {
    /// Content bytes of each.
    pub sizes: Vec<u64>,
    /// Whether each has bytes beyond ASCII; empty where none has.
    pub eight_bit: Vec<bool>,
    pub seed: u64,
}

impl Classes {
    /// The place of message `number` among the prepared messages.
    pub fn of(&self, number: u64) -> usize {
        match self.sizes.len() {
            1 => 0,
            len => {
                Rng::new(self.seed ^ number.wrapping_mul(0x9E6C_63D0_876A_68DE)).below(len as u64) as usize
            }
        }
    }
}

/// Where messages go.
#[derive(Clone, Debug)]
pub enum Domains {
    One(String),
    /// `d0.test`, `d1.test` and so on in turn.
    Turn(u32),
    /// The same, each with its weight.
    Generated(Pick, u64),
    Listed(Vec<String>, Pick, u64),
}

impl Domains {
    /// `count` domains of which the k-th gets mail in proportion to `1 / k^exponent`.
    pub fn zipf(count: u32, exponent: f64, seed: u64) -> Domains {
        Domains::Generated(Pick::zipf(count as usize, exponent), seed)
    }
    /// The domains of a file with `domain [weight]` on each line.
    pub fn listed(path: &Path, seed: u64) -> anyhow::Result<Domains> {
        let domain = |word: &str| {
            let is_plain = word.bytes().all(|c| c.is_ascii_alphanumeric() || b".-_[]:".contains(&c));
            if is_plain { Ok(word.to_owned()) } else { Err(format!("'{word}' is not a domain")) }
        };
        let (names, weights): (Vec<String>, Vec<f64>) = read_weighted(path, domain)?.into_iter().unzip();
        Ok(Domains::Listed(names, Pick::new(&weights), seed))
    }
    /// Appends the domain of a delivery (message number times recipients plus recipient).
    pub fn push(&self, delivery: u64, text: &mut Vec<u8>) {
        let random = |seed: &u64| Rng::new(seed ^ delivery.wrapping_mul(0xD134_2543_DE82_EF95)).next_u64();
        let generated = match self {
            Domains::One(domain) => return text.extend_from_slice(domain.as_bytes()),
            Domains::Listed(names, pick, seed) => {
                return text.extend_from_slice(names[pick.at(random(seed))].as_bytes());
            }
            Domains::Turn(count) => delivery % u64::from(*count),
            Domains::Generated(pick, seed) => pick.at(random(seed)) as u64,
        };
        text.push(b'd');
        stamp::push_decimal(generated, text);
        text.extend_from_slice(b".test");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_have_the_distribution() {
        let sizes = "uniform:1000-2000".parse::<SizeMix>().unwrap().quantiles().unwrap();
        assert_eq!((sizes.len(), sizes.is_sorted()), (limits::SIZE_CLASSES as usize, true));
        let mean = sizes.iter().sum::<u64>() as f64 / sizes.len() as f64;
        assert!((1495.0..1505.0).contains(&mean) && sizes[0] >= 1000 && *sizes.last().unwrap() <= 2000);
        let all = "uniform:0-18446744073709551615".parse::<SizeMix>().unwrap().quantiles().unwrap();
        assert!(all.is_sorted() && all[0] > 0);
        let sizes = "lognormal:8KiB,1".parse::<SizeMix>().unwrap().quantiles().unwrap();
        let median = f64::midpoint(sizes[sizes.len() / 2 - 1] as f64, sizes[sizes.len() / 2] as f64);
        assert!((8150.0..8230.0).contains(&median), "{median}");
        // One standard deviation is a factor of e: 84.13 % are below it.
        let below = sizes.iter().filter(|&&size| (size as f64) < 8192.0 * std::f64::consts::E).count();
        assert!((0.83..0.85).contains(&(below as f64 / sizes.len() as f64)), "{below}");
    }

    #[test]
    fn normal_quantiles() {
        for (q, want) in [(0.5, 0.0), (0.975, 1.959_964), (0.001, -3.090_232), (0.01, -2.326_348)] {
            assert!((normal_quantile(q) - want).abs() < 1e-5, "{q}");
        }
    }

    #[test]
    fn files_of_weights() {
        let dir = std::env::temp_dir().join(format!("ringpost-mix-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("list");
        std::fs::write(&path, "# sizes\n1KiB 3\n\n4KiB\n").unwrap();
        let sizes = SizeMix::File(path.clone()).quantiles().unwrap();
        assert_eq!(sizes.iter().filter(|&&size| size == 1024).count(), sizes.len() * 3 / 4);
        std::fs::write(&path, "a.test 9\nb.test 1\n").unwrap();
        let domains = Domains::listed(&path, 1).unwrap();
        let mut text = Vec::new();
        (0..1000).for_each(|delivery| domains.push(delivery, &mut text));
        let hits = memchr::memmem::find_iter(&text, b"a.test").count();
        assert!((850..950).contains(&hits), "{hits}");
        for bad in ["", "a b c\n", "a -1\n", "a\u{7f} 1\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(Domains::listed(&path, 1).is_err(), "{bad:?}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn distributions_as_text() {
        for text in ["uniform:4-2", "uniform:4", "lognormal:4KiB", "lognormal:4KiB,-1", "4KiB", "file"] {
            assert!(text.parse::<SizeMix>().is_err(), "{text}");
        }
    }
}
