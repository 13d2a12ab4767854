//! Medians and spreads.

/// The value below which `fraction` of the sorted values lie; 0 if there is none.
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((sorted.len() - 1) as f64 * fraction).round() as usize;
    sorted[at.min(sorted.len() - 1)]
}

/// Smallest, middle and largest of some values.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Middle.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of any number of values; zeros if there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { min: quantile(&sorted, 0.0), median: quantile(&sorted, 0.5), max: quantile(&sorted, 1.0) }
    }
}

/// In which order lanes take turns: another one begins each round, and who comes before whom changes from one to the next.
pub fn order(lanes: usize, round: usize) -> impl Iterator<Item = usize> {
    let there = move |step| if round.is_multiple_of(2) { step } else { lanes - 1 - step };
    (0..lanes).map(move |step| (there(step) + round) % lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lanes_take_turns_and_not_always_after_the_same_one() {
        let turns = |round| order(4, round).collect::<Vec<_>>();
        assert_eq!((turns(0), turns(1), turns(2)), (vec![0, 1, 2, 3], vec![0, 3, 2, 1], vec![2, 3, 0, 1]));
    }

    #[test]
    fn the_median_of_an_odd_number_of_values_is_the_middle_one() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert!(quantile(&[], 0.5).abs() < f64::EPSILON);
    }
}
