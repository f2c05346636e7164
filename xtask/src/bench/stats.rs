// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Statistics without assumptions about distributions, because timings don't satisfy them.

/// The quantile `q` (0 to 1) of `values`, linearly interpolated; NaN for no values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let place = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// The median of `values`.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The median absolute deviation from the median.
pub fn mad(values: &[f64]) -> f64 {
    let middle = median(values);
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    median(&distances)
}

/// A median with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The sample's median.
    pub median: f64,
    /// The interval that contains the true median with a probability of at least 95 %; none for fewer than six values.
    pub interval: Option<(f64, f64)>,
}

/// The median, and the interval between the two order statistics that contains it in 95 % of all samples. Each value is
/// above or below the true median with equal probability, so the ranks follow a fair coin.
pub fn estimate(values: &[f64]) -> Estimate {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    // The largest k for which at most 2.5 % of all samples have k or fewer values below the median.
    let (mut probability, mut below) = (0.5f64.powi(count as i32), 0.0);
    let mut rank = None;
    for k in 0..count {
        below += probability;
        if below > 0.025 {
            break;
        }
        rank = Some(k);
        probability *= (count - k) as f64 / (k + 1) as f64;
    }
    Estimate {
        median: median(&sorted),
        interval: rank.map(|k| (sorted[k], sorted[count - 1 - k])),
    }
}

/// The median of `these[i] / those[i]`, where each pair is from the same round: what slows the machine for a while
/// slows both, and cancels out.
pub fn paired_ratio(these: &[f64], those: &[f64]) -> Estimate {
    let ratios: Vec<f64> = these
        .iter()
        .zip(those)
        .filter(|(_, that)| **that != 0.0)
        .map(|(this, that)| this / that)
        .collect();
    estimate(&ratios)
}

/// The two-sided p-value of Mann and Whitney's U test: how probable a difference of ranks as large as this one is
/// if both samples come from one distribution. By the normal approximation, with ties and continuity corrected;
/// good from about eight values each. 1 if all values are equal.
pub fn mann_whitney(these: &[f64], those: &[f64]) -> f64 {
    let (n, m) = (these.len() as f64, those.len() as f64);
    let mut all: Vec<(f64, bool)> = these.iter().map(|&value| (value, true)).collect();
    all.extend(those.iter().map(|&value| (value, false)));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut rank_sum, mut ties, mut start) = (0.0, 0.0, 0);
    for group in all.chunk_by(|a, b| a.0 == b.0) {
        let size = group.len() as f64;
        let rank = start as f64 + (size + 1.0) / 2.0;
        rank_sum += rank * group.iter().filter(|(_, is_this)| *is_this).count() as f64;
        ties += size.powi(3) - size;
        start += group.len();
    }
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
    if variance.is_nan() || variance <= 0.0 {
        return 1.0;
    }
    let distance = ((u - n * m / 2.0).abs() - 0.5).max(0.0);
    erfc(distance / variance.sqrt() / std::f64::consts::SQRT_2)
}

/// The complementary error function for x >= 0, to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn erfc(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let coefficients = [
        1.061_405_429,
        -1.453_152_027,
        1.421_413_741,
        -0.284_496_736,
        0.254_829_592,
    ];
    let polynomial = coefficients.iter().fold(0.0, |sum, c| sum * t + c) * t;
    polynomial * (-x * x).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_near(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-3, "{value} is not {expected}");
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        is_near(median(&values), 2.5);
        is_near(quantile(&values, 0.0), 1.0);
        is_near(quantile(&values, 0.25), 1.75);
        is_near(quantile(&values, 1.0), 4.0);
        is_near(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn deviation_ignores_what_is_far_out() {
        is_near(mad(&[1.0, 2.0, 3.0, 4.0, 1000.0]), 1.0);
    }

    #[test]
    fn intervals_have_the_textbook_ranks() {
        // For 10 values 95 % need the 2nd and the 9th, for 25 the 8th and the 18th; 5 are too few.
        let ranks = |count: u32| {
            let values: Vec<f64> = (1..=count).map(f64::from).collect();
            estimate(&values).interval
        };
        assert_eq!(ranks(5), None);
        assert_eq!(ranks(6), Some((1.0, 6.0)));
        assert_eq!(ranks(10), Some((2.0, 9.0)));
        assert_eq!(ranks(25), Some((8.0, 18.0)));
    }

    #[test]
    fn ratios_of_pairs_do_not_see_the_machine_drift() {
        let those: Vec<f64> = (1..=20).map(f64::from).collect();
        let these: Vec<f64> = those.iter().map(|value| value * 1.5).collect();
        let ratio = paired_ratio(&these, &those);
        is_near(ratio.median, 1.5);
        assert_eq!(ratio.interval, Some((1.5, 1.5)));
    }

    #[test]
    fn different_samples_are_told_apart_and_equal_ones_are_not() {
        let low: Vec<f64> = (0..12).map(f64::from).collect();
        let high: Vec<f64> = (20..32).map(f64::from).collect();
        assert!(mann_whitney(&low, &high) < 1e-4);
        is_near(mann_whitney(&low, &low), 1.0);
        is_near(mann_whitney(&[1.0; 9], &[1.0; 9]), 1.0);
        is_near(mann_whitney(&[], &[]), 1.0);
        assert_eq!(mann_whitney(&low, &high), mann_whitney(&high, &low));
    }

    #[test]
    fn p_values_are_those_of_the_normal_approximation() {
        // U = 12 of 40, mean 20, variance 5 * 8 * 14 / 12; z = 7.5 / 6.8313, p = 0.2722.
        let these = [1.0, 2.0, 3.0, 9.0, 12.0];
        let those = [4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 11.0, 13.0];
        is_near(mann_whitney(&these, &those), 0.2723);
    }
}
