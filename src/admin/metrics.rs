//! The metrics page: what is counted in memory and what can be counted in the database, as
//! Prometheus reads it. `docs/metrics.md` has every name.

use std::fmt::Display;
use std::time::Duration;

use crate::metrics::{Exposition, Kind};
use crate::state::figures::Figures;
use crate::state::{Store, now_ns};

/// Longest wait for the database; a page without its figures is better than none.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the page is made from. Cheap to clone.
#[derive(Clone)]
pub struct MetricsPage {
    store: Store,
    address_capacity: usize,
}

impl MetricsPage {
    /// A page about this store; `address_capacity` is how many addresses the pod network has.
    #[must_use]
    pub fn new(store: Store, address_capacity: usize) -> Self {
        Self {
            store,
            address_capacity,
        }
    }

    /// The page as it is now.
    pub async fn text(&self) -> String {
        let mut page = Exposition::default();
        gauge(
            &mut page,
            "quilt_build_info",
            "The version that runs; always 1.",
        );
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.sample("quilt_build_info", &version, 1);
        self.store.metrics().write(&mut page);
        let figures = tokio::time::timeout(PATIENCE, self.store.figures()).await;
        let figures = match figures {
            Ok(Ok(figures)) => Some(figures),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the metrics lack what is counted in the database");
                None
            }
            Err(_) => None,
        };
        let help = "Whether the figures from the database are on this page.";
        gauge(&mut page, "quilt_metrics_complete", help);
        page.sample("quilt_metrics_complete", &[], i32::from(figures.is_some()));
        if let Some(figures) = figures {
            self.write_figures(&mut page, &figures);
        }
        page.finish()
    }

    fn write_figures(&self, page: &mut Exposition, figures: &Figures) {
        gauge(
            page,
            "quilt_jobs",
            "Objects to be looked at, by kind and state.",
        );
        for (kind, state, count) in &figures.jobs {
            page.sample("quilt_jobs", &[("kind", kind), ("state", state)], count);
        }
        let help = "Mean number of failures of the jobs that are there.";
        single(
            page,
            "quilt_job_attempts_mean",
            help,
            figures.job_attempts_mean,
        );
        gauge(page, "quilt_containers", "Containers by state.");
        by_state(page, "quilt_containers", &figures.containers);
        gauge(page, "quilt_sandboxes", "Pod sandboxes by state.");
        by_state(page, "quilt_sandboxes", &figures.sandboxes);
        gauge(
            page,
            "quilt_cleanup_tasks",
            "Removals that are not done, by type and status.",
        );
        for (kind, status, count) in &figures.cleanups {
            let labels = [("type", kind.as_str()), ("status", status)];
            page.sample("quilt_cleanup_tasks", &labels, count);
        }
        let help = "Age of the oldest removal that is not done, by type.";
        gauge(page, "quilt_cleanup_oldest_age_seconds", help);
        let now = now_ns();
        for (kind, created_at) in &figures.oldest_cleanups {
            let age = u64::try_from(now - created_at).unwrap_or(0);
            let age = Duration::from_nanos(age).as_secs_f64();
            page.sample("quilt_cleanup_oldest_age_seconds", &[("type", kind)], age);
        }
        let help = "Images and layers in which the last check found damage, by kind.";
        gauge(page, "quilt_damaged", help);
        for (kind, count) in &figures.damaged {
            page.sample("quilt_damaged", &[("kind", kind)], count);
        }
        let help = "Addresses of the pod network that are given out.";
        single(page, "quilt_addresses_used", help, figures.addresses_used);
        let help = "Networks that wait for a pod, by whether they are complete.";
        gauge(page, "quilt_prepared_networks", help);
        by_state(page, "quilt_prepared_networks", &figures.prepared);
        let help = "Addresses of the pod network in all.";
        single(
            page,
            "quilt_addresses_capacity",
            help,
            self.address_capacity,
        );
    }
}

fn gauge(page: &mut Exposition, name: &str, help: &str) {
    page.describe(name, help, Kind::Gauge);
}

fn single(page: &mut Exposition, name: &str, help: &str, value: impl Display) {
    gauge(page, name, help);
    page.sample(name, &[], value);
}

fn by_state(page: &mut Exposition, name: &str, counts: &[(String, i64)]) {
    for (state, count) in counts {
        page.sample(name, &[("state", state)], count);
    }
}
