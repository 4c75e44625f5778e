//! Choosing the next token from logits.

/// The index of the largest logit, the first of equals. NaN is never chosen while a number is there.
pub fn greedy(logits: &[f32]) -> usize {
    let mut best = 0;
    let mut largest = f32::NEG_INFINITY;
    for (i, &x) in logits.iter().enumerate() {
        if x > largest {
            (best, largest) = (i, x);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::greedy;

    #[test]
    fn the_first_of_the_largest_wins() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0, -1.0]), 1);
        assert_eq!(greedy(&[f32::NAN, -5.0, f32::NAN, -4.0]), 3);
        assert_eq!(greedy(&[f32::NEG_INFINITY; 3]), 0);
    }
}
