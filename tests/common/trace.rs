//! A tracing layer that captures events.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// One event: its level, and its fields and those of its enclosing spans as `key=value`.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) level: Level,
    pub(crate) text: String,
}

type OnEvent = dyn Fn(&Captured) + Send + Sync;

/// A tracing layer that captures this crate's events. Clones share what was captured.
#[derive(Clone)]
pub(crate) struct Capture {
    seen: Arc<Mutex<Vec<Captured>>>,
    on_event: Arc<OnEvent>,
}

struct Fields(String);

impl Capture {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Also calls `on_event`, on the thread that emits the event.
    pub(crate) fn with(on_event: impl Fn(&Captured) + Send + Sync + 'static) -> Self {
        Self { seen: Arc::default(), on_event: Arc::new(on_event) }
    }

    /// All events of this crate captured so far.
    pub(crate) fn seen(&self) -> Vec<Captured> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first event whose text contains all of `parts`.
    pub(crate) fn find(&self, parts: &[&str]) -> Option<Captured> {
        self.seen().into_iter().find(|event| parts.iter().all(|part| event.text.contains(part)))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields(String::new());
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if !event.metadata().target().starts_with("lanecast") {
            return;
        }
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(of_span) = span.extensions().get::<Fields>() {
                fields.0.push_str(&of_span.0);
            }
        }
        let captured = Captured { level: *event.metadata().level(), text: fields.0 };
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(captured.clone());
        (self.on_event)(&captured);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{}={value:?} ", field.name()).expect("a string takes everything");
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        write!(self.0, "{}={value} ", field.name()).expect("a string takes everything");
    }
}
