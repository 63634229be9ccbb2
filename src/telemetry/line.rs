//! Log lines for files and pipes: what the subscriber's own format without colours writes, at a fraction of its cost.
//!
//! Measured in instructions for a cached manifest: the log was more than a third of a request, because each field went
//! through several layers of formatting meant for colours.

use std::error::Error;
use std::fmt;
use std::fmt::Write as _;

use tracing::Event;
use tracing::Level;
use tracing::Subscriber;
use tracing::field::Field;
use tracing::field::Visit;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::FormattedFields;
use tracing_subscriber::fmt::format::Format;
use tracing_subscriber::fmt::format::FormatEvent;
use tracing_subscriber::fmt::format::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::registry::LookupSpan;

/// What events that come by way of the `log` crate have for a target: their real one is among their fields.
const LOG_TARGET: &str = "log";

/// Writes events, one a line.
pub(super) struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        if metadata.target() == LOG_TARGET {
            return Format::default().format_event(ctx, writer, event);
        }
        SystemTime.format_time(&mut writer)?;
        writer.write_str(match *metadata.level() {
            Level::ERROR => " ERROR ",
            Level::WARN => "  WARN ",
            Level::INFO => "  INFO ",
            Level::DEBUG => " DEBUG ",
            Level::TRACE => " TRACE ",
        })?;
        if let Some(scope) = ctx.event_scope() {
            let mut is_inside = false;
            for span in scope.from_root() {
                is_inside = true;
                writer.write_str(span.metadata().name())?;
                let extensions = span.extensions();
                if let Some(fields) = extensions.get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                    writer.write_char('{')?;
                    writer.write_str(fields)?;
                    writer.write_char('}')?;
                }
                writer.write_char(':')?;
            }
            if is_inside {
                writer.write_char(' ')?;
            }
        }
        writer.write_str(metadata.target())?;
        writer.write_str(": ")?;
        ctx.format_fields(writer.by_ref(), event)?;
        writer.write_char('\n')
    }
}

/// Writes fields: the message as it is, then `name=value`, text in quotes.
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Visitor { writer: &mut writer, is_first: true, outcome: Ok(()) };
        fields.record(&mut visitor);
        visitor.outcome
    }
}

struct Visitor<'a, 'w> {
    writer: &'a mut Writer<'w>,
    is_first: bool,
    outcome: fmt::Result,
}

impl Visitor<'_, '_> {
    /// Writes what stands before a value, then the value.
    fn field(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>, bool) -> fmt::Result) {
        if self.outcome.is_err() {
            return;
        }
        let name = field.name();
        let is_message = name == "message";
        let begin = |writer: &mut Writer<'_>| {
            if !self.is_first {
                writer.write_char(' ')?;
            }
            if !is_message {
                writer.write_str(name.strip_prefix("r#").unwrap_or(name))?;
                writer.write_char('=')?;
            }
            Ok(())
        };
        self.outcome = begin(self.writer).and_then(|()| value(self.writer, is_message));
        self.is_first = false;
    }
}

impl Visit for Visitor<'_, '_> {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.field(field, |writer, is_message| match (is_message, is_plain(text)) {
            (true, _) => Harmless(writer).write_str(text),
            (false, true) => {
                writer.write_char('"')?;
                writer.write_str(text)?;
                writer.write_char('"')
            }
            (false, false) => write!(writer, "{text:?}"),
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.field(field, |writer, _| write!(writer, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.field(field, |writer, _| write!(writer, "{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.field(field, |writer, _| writer.write_str(if value { "true" } else { "false" }));
    }

    fn record_error(&mut self, field: &Field, error: &(dyn Error + 'static)) {
        self.field(field, |writer, _| {
            let mut harmless = Harmless(writer);
            write!(harmless, "{error}")?;
            let mut source = error.source();
            while let Some(cause) = source {
                write!(harmless, ": {cause}")?;
                source = cause.source();
            }
            Ok(())
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, |writer, _| write!(Harmless(writer), "{value:?}"));
    }
}

/// Whether quoting changes nothing. Looks at every byte, whatever the first ones say: that way it is done many at a time.
fn is_plain(text: &str) -> bool {
    let is_odd = |byte: u8| !(b' '..=b'~').contains(&byte) || byte == b'"' || byte == b'\\';
    !text.bytes().fold(false, |odd, byte| odd | is_odd(byte))
}

/// Lets nothing through that could move a terminal's cursor or its colours.
struct Harmless<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Harmless<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_harmful = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        let mut rest = text;
        while let Some(at) = rest.find(is_harmful) {
            self.0.write_str(&rest[..at])?;
            let mut chars = rest[at..].chars();
            if let Some(harmful) = chars.next() {
                write!(self.0, "{}", harmful.escape_unicode())?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}
