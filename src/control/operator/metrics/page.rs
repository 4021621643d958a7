//! Families and their samples: labels, values, units.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::Labels;
use crate::control::operator::status::Times;
use crate::stats::BUCKETS_US;

/// The families of a page, in the order in which they are shown.
#[derive(Default)]
pub(super) struct Page(pub(super) Vec<MetricFamily>);

impl Page {
    pub(super) fn counter<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, &'a str); N], u64)>,
    ) {
        let mut family = family(MetricType::COUNTER, name, help);
        samples
            .into_iter()
            .for_each(|(labels, value)| family.count(&labels, value));
        self.0.push(family);
    }

    pub(super) fn gauge<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = ([(&'static str, &'a str); N], impl Into<f64>)>,
    ) {
        let mut family = family(MetricType::GAUGE, name, help);
        samples
            .into_iter()
            .for_each(|(labels, value)| family.gauge(&labels, value));
        self.0.push(family);
    }
}

pub(super) fn family(kind: MetricType, name: &str, help: &str) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_field_type(kind);
    family.set_name(name.into());
    family.set_help(help.into());
    family
}

pub(super) fn counter(value: f64) -> Counter {
    let mut counter = Counter::default();
    counter.set_value(value);
    counter
}

/// Adding samples to a family.
pub(super) trait Samples {
    fn push(&mut self, labels: Labels, value: impl FnOnce(&mut Metric));
    fn count(&mut self, labels: Labels, value: u64) {
        self.push(labels, |metric| metric.set_counter(counter(value as f64)));
    }
    fn gauge(&mut self, labels: Labels, value: impl Into<f64>) {
        let mut gauge = Gauge::default();
        gauge.set_value(value.into());
        self.push(labels, |metric| metric.set_gauge(gauge));
    }
    fn times(&mut self, labels: Labels, times: &Times) {
        let mut below = 0;
        let buckets = BUCKETS_US.iter().zip(&times.buckets).map(|(&bound_us, &n)| {
            below += n;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound_us as f64 / 1e6);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(times.count());
        histogram.set_sample_sum(times.sum_us as f64 / 1e6);
        self.push(labels, |metric| metric.set_histogram(histogram));
    }
}

impl Samples for MetricFamily {
    fn push(&mut self, labels: Labels, value: impl FnOnce(&mut Metric)) {
        let pairs = labels.iter().map(|&(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.into());
            pair.set_value(value.into());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        value(&mut metric);
        self.mut_metric().push(metric);
    }
}
