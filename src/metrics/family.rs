//! One metric family, and the syntax of the table that declares them all.
//!
//! Label values are given by position ([`Family::at`]); their number is part of the type, so a wrong one does not
//! compile.

use prometheus::core::{Collector, Desc, MetricVec, MetricVecBuilder};
use prometheus::proto::MetricFamily;

/// A metric family with `N` labels, which holds one series for each combination of their values.
#[derive(Clone)]
pub(super) struct Family<V, const N: usize> {
    vec: V,
    labels: [&'static str; N],
}

impl<V, const N: usize> Family<V, N> {
    pub(super) fn new(vec: V, labels: [&'static str; N]) -> Self {
        Self { vec, labels }
    }
}

impl<B: MetricVecBuilder, const N: usize> Family<MetricVec<B>, N> {
    /// Gives the series with these label values, in the order of the declaration.
    pub(super) fn at(&self, values: [&str; N]) -> B::M {
        // It panics only on a wrong number of values.
        self.vec.with_label_values(&values)
    }

    /// Creates, at zero, the series of every combination of the values that `known` gives for a label.
    pub(super) fn create_series<'a>(&self, known: &dyn Fn(&str) -> Vec<&'a str>) {
        for values in combinations(self.labels.map(known)) {
            self.at(values);
        }
    }
}

impl<V: Collector, const N: usize> Collector for Family<V, N> {
    fn desc(&self) -> Vec<&Desc> {
        self.vec.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.vec.collect()
    }
}

/// Picks one of each list in every possible way; one empty list leaves nothing to pick.
fn combinations<const N: usize>(lists: [Vec<&str>; N]) -> Vec<[&str; N]> {
    let mut all = vec![[""; N]];
    for (place, list) in lists.iter().enumerate() {
        let extend = |picked: [_; N]| {
            list.iter().map(move |value| {
                let mut picked = picked;
                picked[place] = *value;
                picked
            })
        };
        all = all.into_iter().flat_map(extend).collect();
    }
    all
}

/// Declares a set of families as a table.
///
/// A line is `/// help`, then `name: Kind [labels]`, and for a histogram `in BUCKETS`. The full name is the set's
/// prefix and the line's name. The set gets `declare`, which makes all families, `create_series`, and is a collector.
macro_rules! families {
    (
        $(#[$about:meta])*
        struct $set:ident named $prefix:literal {
            $( #[doc = $help:literal] $name:ident: $kind:ident [$($label:ident),*] $(in $buckets:ident)?; )*
        }
    ) => {
        $(#[$about])*
        #[derive(Clone)]
        pub(super) struct $set {
            $(
                #[doc = $help]
                pub(super) $name: Family<$kind, { <[&str]>::len(&[$(stringify!($label)),*]) }>,
            )*
        }

        impl $set {
            /// Makes the families, still without series.
            pub(super) fn declare() -> prometheus::Result<Self> {
                Ok(Self {
                    $($name: {
                        let name = concat!($prefix, stringify!($name));
                        let labels = [$(stringify!($label)),*];
                        let options = families!(@options name, $help.trim() $(, $buckets)?);
                        Family::new($kind::new(options, &labels)?, labels)
                    },)*
                })
            }

            /// Creates, at zero, every series whose label values are known.
            #[allow(dead_code, reason = "sets that are read at scrape time know their labels only then")]
            pub(super) fn create_series<'a>(&self, known: &dyn Fn(&str) -> Vec<&'a str>) {
                $(self.$name.create_series(known);)*
            }
        }

        impl prometheus::core::Collector for $set {
            fn desc(&self) -> Vec<&prometheus::core::Desc> {
                let families: Vec<&dyn prometheus::core::Collector> = vec![$(&self.$name),*];
                families.into_iter().flat_map(|family| family.desc()).collect()
            }

            fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
                let families: Vec<&dyn prometheus::core::Collector> = vec![$(&self.$name),*];
                families.into_iter().flat_map(|family| family.collect()).collect()
            }
        }
    };
    (@options $name:expr, $help:expr) => {
        prometheus::Opts::new($name, $help)
    };
    (@options $name:expr, $help:expr, $buckets:ident) => {
        prometheus::HistogramOpts::new($name, $help).buckets($buckets.to_vec())
    };
}

pub(super) use families;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_are_all_and_each_once() {
        let all = combinations([vec!["a", "b"], vec!["1", "2"]]);
        assert_eq!(all, [["a", "1"], ["a", "2"], ["b", "1"], ["b", "2"]]);
    }

    #[test]
    fn a_family_without_labels_has_one_series() {
        assert_eq!(combinations([]), [[""; 0]]);
    }

    #[test]
    fn a_label_without_known_values_has_no_series_yet() {
        assert!(combinations([vec!["a"], vec![]]).is_empty());
    }
}
