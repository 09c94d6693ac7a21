//! Weighted choices: one index out of many, in constant time.
//!
//! Owns: the alias table (Walker 1977, in Vose's form). Promises: the same number gives the same
//! index; two table reads per choice, however many indexes there are. Must not: know what it
//! chooses.

/// A distribution over `0..len`.
#[derive(Clone, Debug)]
pub struct Pick {
    /// For each index: the chance to stay with it, and the index to take otherwise.
    table: Vec<(f32, u32)>,
}

impl Pick {
    /// A distribution with these weights, of which one at least must be positive. Takes at most
    /// `u32::MAX` of them.
    pub fn new(weights: &[f64]) -> Pick {
        let sum: f64 = weights.iter().sum();
        let mut scaled: Vec<f64> = weights.iter().map(|w| w / sum * weights.len() as f64).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..scaled.len()).partition(|&i| scaled[i] < 1.0);
        let mut table: Vec<(f32, u32)> = (0..weights.len()).map(|index| (1.0, index as u32)).collect();
        while let (Some(less), Some(&more)) = (small.pop(), large.last()) {
            table[less] = (scaled[less] as f32, more as u32);
            scaled[more] -= 1.0 - scaled[less];
            if scaled[more] < 1.0 {
                large.pop();
                small.push(more);
            }
        }
        Pick { table }
    }
    /// The popularity of `len` things after Zipf: the k-th has weight `1 / k^exponent`.
    pub fn zipf(len: usize, exponent: f64) -> Pick {
        let weights: Vec<f64> = (1..=len).map(|rank| (rank as f64).powf(-exponent)).collect();
        Pick::new(&weights)
    }
    /// The choice that `random`, uniform over all of its values, makes.
    pub fn at(&self, random: u64) -> usize {
        let index = ((u128::from(random) * self.table.len() as u128) >> 64) as usize;
        let (stay, other) = self.table[index];
        let fine = crate::clock::Rng::new(random).unit();
        if fine <= f64::from(stay) { index } else { other as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Rng;

    fn shares(pick: &Pick) -> Vec<f64> {
        let mut rng = Rng::new(3);
        let mut counts = vec![0u32; pick.table.len()];
        (0..200_000).for_each(|_| counts[pick.at(rng.next_u64())] += 1);
        counts.iter().map(|&count| f64::from(count) / 200_000.0).collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        for weights in [vec![1.0], vec![1.0, 0.0, 3.0], vec![5.0, 1.0, 1.0, 1.0, 2.0]] {
            let sum: f64 = weights.iter().sum();
            for (got, weight) in shares(&Pick::new(&weights)).iter().zip(&weights) {
                assert!((got - weight / sum).abs() < 0.01, "{weights:?}: {got}");
            }
        }
        let zipf = shares(&Pick::zipf(100, 1.0));
        assert!((zipf[0] / zipf[1] - 2.0).abs() < 0.1 && (zipf[0] / zipf[9] - 10.0).abs() < 1.0, "{zipf:?}");
    }
}
