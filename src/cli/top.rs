//! `synthex top`: the fleet as it is now, and keys to operate it.
//!
//! - [`state`] is what is known and what is selected, and what a key does to it.
//! - [`view`] draws that.
//! - Here it is kept up to date: the workers are asked again and again, keys are read, and orders are given, none of them
//!   waiting for another.

mod state;
mod view;

use std::future::Future;
use std::io::{self, IsTerminal};
use std::pin::Pin;
use std::time::Duration;

use clap::Args;
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use super::exit::{Exit, Failure};
use super::operator::{Inbox, Operator, OperatorArgs, out, who};
use super::{environment, jobs, pause, pools, print, resume, workers};
use crate::control::fleet::{Target, Wait};
use crate::control::snapshot::Snapshot;
use crate::message::{Order, Reply, Request, Span, now};
use state::{Command, Pressed, State};

/// After an answer of a worker, the next one follows at once, or its worker is slow.
const BETWEEN_ANSWERS: Duration = Duration::from_millis(300);
/// The longest that one look waits for workers.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// A look that takes so long has not reached the broker.
const SILENT: Duration = Duration::from_secs(4);
/// How often ages and bars move on.
const REDRAW: Duration = Duration::from_secs(1);

/// Show pools, workers and running jobs as they are now.
///
/// Pools with what waits and what runs, how many attempts end a second and how many failed; workers with their slots;
/// running jobs with their age and their way to the timeout. Keys pause and resume a pool, drain a worker and cancel a
/// job, each after a y; ? lists them. Goes on while the broker is away, and says so.
///
/// With --once it looks twice, prints what it saw, and ends.
#[derive(Args)]
pub(super) struct TopArgs {
    /// Show these pools even if no worker serves them
    #[arg(value_name = "POOL")]
    pools: Vec<String>,
    /// From one look to the next
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    interval: Span,
    /// Print tables and end
    #[arg(long)]
    once: bool,
    /// Print a JSON object instead of tables
    #[arg(long, requires = "once")]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: TopArgs) -> Result<Exit, Failure> {
    let has_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !(args.once || has_terminal) {
        let message = "top needs a terminal; use --once, with --json for programs";
        return Err(Failure::new(Exit::Usage, message));
    }
    let operator = Operator::new(&args.operator)?;
    let shown = if args.once {
        once(&operator, &args).await
    } else {
        watch(&operator, &args).await
    };
    operator.end(shown).await
}

/// One look. The inbox is made where there is none, and lost with the connection.
async fn look(
    operator: &Operator<'_>,
    inbox: Option<Inbox>,
    pools: &[String],
) -> (Option<Inbox>, Result<Snapshot, Failure>) {
    let mut inbox = match inbox {
        Some(inbox) => inbox,
        None => match operator.inbox().await {
            Ok(inbox) => inbox,
            Err(failure) => return (None, Err(failure)),
        },
    };
    let wait = Wait {
        most: ANSWERS_WITHIN,
        between: BETWEEN_ANSWERS,
    };
    match operator.snapshot(&mut inbox, pools, wait).await {
        Ok(snapshot) => (Some(inbox), Ok(snapshot)),
        Err(failure) => (None, Err(failure)),
    }
}

/// Two looks, for there is no rate in one.
async fn once(operator: &Operator<'_>, args: &TopArgs) -> Result<Exit, Failure> {
    let (inbox, first) = look(operator, None, &args.pools).await;
    let first = first?;
    sleep(args.interval.get()).await;
    let (_, second) = look(operator, inbox, &args.pools).await;
    let snapshot = second?.after(&first);
    if args.json {
        out(&print::json(&snapshot)).await?;
    } else {
        out(&tables(&snapshot)).await?;
    }
    if snapshot.workers.is_empty() {
        print::note("no worker answered");
    }
    Ok(Exit::Done)
}

fn tables(snapshot: &Snapshot) -> String {
    let jobs: Vec<_> = snapshot.jobs.iter().collect();
    [
        pools::table(&snapshot.pools),
        workers::rows(&snapshot.workers),
        jobs::table(&jobs, snapshot.at),
    ]
    .join("\n\n")
}

type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The screen, until somebody quits.
async fn watch(operator: &Operator<'_>, args: &TopArgs) -> Result<Exit, Failure> {
    // What cannot work at all is said before the terminal is taken.
    let (inbox, first) = look(operator, None, &args.pools).await;
    let mut state = State::new(operator.namespace().to_owned(), operator.hosts()?, first?);
    let colours = view::Colours::new(environment::wants_colour());
    let mut screen = Screen::take()?;
    let mut keys = EventStream::new();
    let mut stop = Stop::new()?;
    let interval = args.interval.get();
    let look_later = |inbox| async move {
        sleep(interval).await;
        look(operator, inbox, &args.pools).await
    };
    let mut looking: Pending<'_, _> = Box::pin(look_later(inbox));
    let mut looked_at = Instant::now();
    let mut doing: Option<Pending<'_, Result<String, Failure>>> = None;
    loop {
        screen.draw(|frame| view::draw(&state, colours, now(), frame))?;
        tokio::select! {
            () = stop.asked() => return Ok(Exit::Done),
            event = keys.next() => match pressed(&mut state, event) {
                Pressed::Quit => return Ok(Exit::Done),
                Pressed::Do(_) if doing.is_some() => state.say("what was asked before is not done yet".to_owned()),
                Pressed::Do(command) => {
                    state.say(command.begun());
                    doing = Some(Box::pin(perform(operator, command)));
                }
                Pressed::Nothing => {}
            },
            (inbox, looked) = &mut looking => {
                match looked {
                    Ok(snapshot) => state.update(snapshot),
                    Err(failure) => state.lose(failure.message, now()),
                }
                looking = Box::pin(look_later(inbox));
                looked_at = Instant::now();
            }
            done = async { doing.as_mut().expect("it is there").await }, if doing.is_some() => {
                doing = None;
                state.say(done.unwrap_or_else(|failure| failure.message));
            }
            // A look goes on for as long as --connect-timeout says; who watches is told before that.
            () = sleep(REDRAW) => if looked_at.elapsed() > interval + SILENT && state.lost.is_none() {
                state.lose("no answer yet, trying again".to_owned(), now());
            },
        }
    }
}

/// What an event of the terminal does. A terminal that is gone has nobody left to show anything to.
fn pressed(state: &mut State, event: Option<io::Result<Event>>) -> Pressed {
    match event {
        Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => state.press(key),
        Some(Ok(_)) => Pressed::Nothing, // a resize: it is drawn anew
        Some(Err(_)) | None => Pressed::Quit,
    }
}

/// Does what a key has asked for, and says so.
async fn perform(operator: &Operator<'_>, command: Command) -> Result<String, Failure> {
    let done = command.done();
    match command {
        Command::Pause(pool) => operator.order(&pause::pause(pool)).await?,
        Command::Resume(pool) => operator.order(&resume::resume(pool)).await?,
        Command::Cancel { id, pool } => {
            let order = Order::Cancel {
                ids: vec![id],
                labels: std::collections::BTreeMap::new(),
                batch: None,
                pool: Some(pool),
                at: now(),
                by: Some(who()),
            };
            operator.order(&order).await?;
        }
        Command::Drain(worker) => {
            let mut inbox = operator.inbox().await?;
            let request = Request::Drain { worker: worker.clone() };
            let target = Target::Worker(&worker);
            match operator
                .ask(&mut inbox, target, &request, ANSWERS_WITHIN)
                .await?
                .as_deref()
            {
                None => return Ok(format!("worker {worker} is gone")),
                Some([Reply::Refused { message }, ..]) => {
                    return Ok(format!("worker {worker} does not drain: {message}"));
                }
                Some(_) => {}
            }
        }
    }
    Ok(done)
}

/// The terminal, as it was before once this is dropped, also by a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> Result<Self, Failure> {
        // It has a panic restore the terminal before it is told.
        ratatui::try_init()
            .map(Self)
            .map_err(|error| Failure::io("use the terminal", &error))
    }

    fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> Result<(), Failure> {
        let drawn = self.0.draw(draw);
        drawn
            .map(|_| ())
            .map_err(|error| Failure::io("draw on the terminal", &error))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// The signals that end it. Ctrl-C is a key while the terminal is ours.
struct Stop([tokio::signal::unix::Signal; 3]);

impl Stop {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| Failure::io("catch signals", &error));
        Ok(Self([
            catch(SignalKind::terminate())?,
            catch(SignalKind::interrupt())?,
            catch(SignalKind::hangup())?,
        ]))
    }

    /// Waits for one of them. Cancel safe.
    async fn asked(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
