//! Tables for people: aligned columns, no colours, no lines drawn, so that they go well through a pager and `cut`.

use crate::message::harmless::harmless;

/// A heading and its rows, aligned. What others wrote is shown without control characters, which a terminal would obey.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heading.map(str::to_owned))
        .chain(rows.into_iter().map(|row| row.map(|cell| harmless(&cell))))
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let rows = [["ä", "long one"], ["longer", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(["A", "B"], rows), "A       B\nä       long one\nlonger  -");
    }

    #[test]
    fn no_terminal_is_given_orders_by_a_job() {
        let rows = [["\x1b[2J\u{9b}31m\n".to_owned()]];
        assert_eq!(table(["A"], rows), "A\n\u{fffd}[2J\u{fffd}31m\u{fffd}");
    }
}
