//! Samples and their labels, as a scraper reads them.

use super::*;
use crate::api::status::{Arbiter, Node, Track, Vip, Witness};

fn render(facts: &Facts) -> String {
    let metrics = Metrics {
        snapshot: &Snapshot::default(),
        workers: &[],
        facts,
    };
    metrics.render()
}

#[test]
fn vips_and_nodes_have_samples() {
    let vip = |address: &str, state: &str| Vip {
        address: address.into(),
        state: state.into(),
        transitions: 3,
        ..Vip::default()
    };
    let node = |name: &str, alive| Node {
        name: name.into(),
        alive,
        last_beat_ms: None,
        mismatch: (name == "b").then(|| "beat is 10 ms there, 50 ms here".into()),
    };
    let track = |name: &str, holds| Track {
        name: name.into(),
        holds,
        ..Track::default()
    };
    let witness = |address: &str, up| Witness {
        address: address.into(),
        up,
    };
    let page = render(&Facts {
        vips: vec![vip("10.0.0.100/24", "active"), vip("2001:db8::1/64", "standby")],
        nodes: vec![node("b", true), node("c", false)],
        witnesses: vec![witness("10.0.0.254:22", Some(false)), witness("10.0.0.253:22", None)],
        tracks: vec![
            track("gw", Some(true)),
            track("uplink", Some(false)),
            track("new", None),
        ],
        arbiter: Some(Arbiter {
            up: Some(true),
            votes: vec!["10.0.0.100".into()],
            ..Arbiter::default()
        }),
        ..Facts::default()
    });
    for unknown in ["10.0.0.253", "new"] {
        assert!(
            !page.contains(&format!("\"{unknown}")),
            "nothing is said of what is not known"
        );
    }
    for line in [
        "# TYPE weir_vip_held gauge",
        "weir_vip_held{vip=\"10.0.0.100/24\"} 1",
        "weir_vip_held{vip=\"2001:db8::1/64\"} 0",
        "weir_vip_state{vip=\"2001:db8::1/64\",state=\"standby\"} 1",
        "weir_vip_state{vip=\"2001:db8::1/64\",state=\"active\"} 0",
        "# TYPE weir_vip_transitions_total counter",
        "weir_vip_transitions_total{vip=\"10.0.0.100/24\"} 3",
        "weir_node_alive{node=\"b\"} 1",
        "weir_node_alive{node=\"c\"} 0",
        "weir_node_config_mismatch{node=\"b\"} 1",
        "weir_node_config_mismatch{node=\"c\"} 0",
        "weir_witness_up{witness=\"10.0.0.254:22\"} 0",
        "weir_track_up{track=\"gw\"} 1",
        "weir_track_up{track=\"uplink\"} 0",
        "weir_arbiter_up 1",
        "weir_arbiter_votes 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
}

#[test]
fn families_without_samples_are_left_out_and_labels_are_escaped() {
    let page = render(&Facts::default());
    assert!(
        !page.contains("weir_vip_held") && !page.contains("weir_backend_up"),
        "{page}"
    );
    let node = Node {
        name: "a\"b\\c\nd".into(),
        ..Node::default()
    };
    let page = render(&Facts {
        nodes: vec![node],
        ..Facts::default()
    });
    assert!(page.contains(r#"weir_node_alive{node="a\"b\\c\nd"} 0"#), "{page}");
}

/// Only where there is a kernel engine.
#[test]
fn packets_have_samples() {
    let page = render(&Facts {
        packets: Some(link::PacketFigures {
            flows: 3,
            flows_max: 1024,
            packets: [7, 8],
            dropped: vec![("no_backend", 0), ("too_big", 9)],
        }),
        ..Facts::default()
    });
    for line in [
        "weir_kernel_flows 3",
        "weir_limit_kernel_flows 1024",
        "# TYPE weir_kernel_packets_total counter",
        "weir_kernel_packets_total{direction=\"in\"} 7",
        "weir_kernel_packets_total{direction=\"out\"} 8",
        "weir_kernel_dropped_total{reason=\"no_backend\"} 0",
        "weir_kernel_dropped_total{reason=\"too_big\"} 9",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
    assert!(!render(&Facts::default()).contains("weir_kernel"));
}

/// Fails when buckets are not added up.
#[test]
fn histograms_are_cumulative_and_in_seconds() {
    let mut times = Times::default();
    for us in [50, 250, 400, 7_200_000_000] {
        times.observe(Duration::from_micros(us));
    }
    let mut seconds = family(MetricType::HISTOGRAM, "t_seconds", "Help.");
    seconds.times(&[], &times);
    let page = TextEncoder::new().encode_to_string(&[seconds]).unwrap_or_default();
    for line in [
        "t_seconds_bucket{le=\"0.0001\"} 1",
        "t_seconds_bucket{le=\"0.00025\"} 2",
        "t_seconds_bucket{le=\"0.0005\"} 3",
        "t_seconds_bucket{le=\"3600\"} 3",
        "t_seconds_bucket{le=\"+Inf\"} 4",
        "t_seconds_sum 7200.0007",
        "t_seconds_count 4",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
}

#[test]
fn a_peak_is_remembered_for_a_minute_and_forgotten_after_two() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let ms = Duration::from_millis;
    let mut peak = Peak::new(start);
    peak.observe(at(0), ms(5));
    peak.observe(at(1), ms(3));
    // (second, greatest by then)
    for (second, greatest) in [(1, 5), (59, 5), (61, 5), (119, 5), (122, 0)] {
        assert_eq!(peak.value(at(second)), ms(greatest), "{second}");
    }
    peak.observe(at(130), ms(9));
    assert_eq!(peak.value(at(500)), ms(0), "nobody asked meanwhile");
}
