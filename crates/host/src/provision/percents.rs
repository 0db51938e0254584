//! How much has come.

/// When to tell how much has come (S-136): when the whole percent changes.
#[derive(Debug, Clone, Default)]
pub struct Percents {
    last: Option<u8>,
}

impl Percents {
    /// `have` of `total` bytes are here. Answers what to tell, if anything: without a known length nothing.
    pub fn advance(&mut self, have: u64, total: Option<u64>) -> Option<u8> {
        let total = total.filter(|total| *total > 0)?;
        // At most 100, so it fits.
        let percent = (u128::from(have) * 100 / u128::from(total)).min(100) as u8;
        (self.last.replace(percent) != Some(percent)).then_some(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_is_told_when_it_changes_and_never_more_than_all() {
        let mut percents = Percents::default();
        let told: Vec<u8> = (0..=1000).filter_map(|have| percents.advance(have, Some(1000))).collect();
        assert_eq!(told, (0..=100).collect::<Vec<u8>>());
        assert_eq!(percents.advance(5000, Some(1000)), None);
        assert_eq!(Percents::default().advance(5000, Some(1000)), Some(100));
        assert_eq!(Percents::default().advance(7, None), None);
        assert_eq!(Percents::default().advance(0, Some(0)), None);
        assert_eq!(Percents::default().advance(u64::MAX, Some(u64::MAX)), Some(100));
    }
}
