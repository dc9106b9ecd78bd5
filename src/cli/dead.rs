//! `synthex dead`: looks at dead letters, has their jobs run again, throws them away.

mod form;

use std::collections::BTreeSet;
use std::io;

use clap::{Args, Subcommand};

use super::broker_args::{BrokerArgs, ClientError, ConnectArgs, broker_failure};
use super::exit::{Exit, Failure};
use super::print;
use crate::control::dead::{DeadError, DeadLetters, Letter, Seen, Selector};
use crate::transport::Transport;
use crate::transport::amqp::Amqp;
use crate::transport::topology::Names;

/// Look at dead letters, run their jobs again, or drop them
///
/// A dead letter is a job that came to a bad end: its runs failed as often as its retry allows, it was no valid job
/// (rejected), its workers died under it (lost), or nobody had declared its pool (unroutable). Its producer has been
/// told by a result, but for the last. A job that was to run once and failed is no letter: it has its result. Letters
/// stay in the queue NAMESPACE.dead until somebody retries or drops them.
///
/// Only letters that wait in the queue are seen, not those that another client holds at that moment.
#[derive(Subcommand)]
pub(super) enum DeadCommand {
    /// List dead letters, in the order of their queue
    List(ListArgs),
    /// Show all that is known of a job's dead letters, with message and body
    ///
    /// Exit code 1 when there is none.
    Show(ShowArgs),
    /// Submit the jobs of dead letters again, and remove the letters
    ///
    /// Each is a new submission: attempt 1, published now, with all that its producer said. Prints the ids. A letter is
    /// removed only after its job was published: stopped in the middle, this loses nothing, and at worst leaves letters
    /// whose jobs run again. Nothing is done (exit code 78) if a pool has no queue; exit code 1 if an ID has no dead
    /// letter.
    Retry(ActArgs),
    /// Remove dead letters for good
    ///
    /// Prints the ids. Exit code 1 if an ID has no dead letter.
    Drop(ActArgs),
}

#[derive(Args)]
pub(super) struct ListArgs {
    /// Only jobs of this pool
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Only letters with this reason: failed, rejected, lost, unroutable, delivery_limit or another
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// At most so many, the first
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
pub(super) struct ShowArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
#[group(id = "which", required = true, multiple = true)]
pub(super) struct WhichArgs {
    /// Jobs by their ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Only jobs of this pool
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Only letters with this reason
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// All letters
    #[arg(long, conflicts_with_all = ["ids", "pool", "reason"])]
    all: bool,
}

#[derive(Args)]
pub(super) struct ActArgs {
    #[command(flatten)]
    which: WhichArgs,
    /// Only tell which letters it would be
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
pub(super) struct CommonArgs {
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(command: DeadCommand) -> Result<Exit, Failure> {
    match command {
        DeadCommand::List(args) => {
            let selector = Selector {
                pool: args.pool,
                reason: args.reason,
                ..Selector::default()
            };
            let client = Client::connect(args.common).await?;
            let listed = client.list(&selector, args.limit.unwrap_or(usize::MAX)).await;
            client.close(listed).await
        }
        DeadCommand::Show(args) => {
            let client = Client::connect(args.common).await?;
            let shown = client.show(args.id).await;
            client.close(shown).await
        }
        DeadCommand::Retry(args) => act(args, Act::Retry).await,
        DeadCommand::Drop(args) => act(args, Act::Drop).await,
    }
}

async fn act(args: ActArgs, act: Act) -> Result<Exit, Failure> {
    let which = args.which;
    let selector = Selector {
        ids: which.ids.into_iter().collect(),
        pool: which.pool,
        reason: which.reason,
    };
    let client = Client::connect(args.common).await?;
    let done = if args.dry_run {
        client.rehearse(&selector, act).await
    } else {
        client.act(&selector, act).await
    };
    client.close(done).await
}

/// What is done to letters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Retry,
    Drop,
}

struct Client {
    broker: Amqp,
    dead: DeadLetters<Amqp>,
    queue: String,
    json: bool,
}

impl Client {
    /// Reaches the broker; from then on a lost connection is an error, since letters may have been dealt with.
    async fn connect(args: CommonArgs) -> Result<Self, Failure> {
        let broker = args.broker.client(&args.connect)?;
        let patience = args.connect.patience(&args.broker)?;
        let names = Names::new(args.broker.namespace);
        let queue = names.dead();
        patience.persist(async || broker.queue_depth(&queue).await).await?;
        Ok(Self {
            dead: DeadLetters::new(broker.clone(), names),
            broker,
            queue,
            json: args.json,
        })
    }

    async fn close(self, outcome: Result<Exit, Failure>) -> Result<Exit, Failure> {
        self.broker.close().await;
        outcome
    }

    /// Prints only after all letters are back: a reader who takes his time keeps none from others.
    async fn list(&self, selector: &Selector, limit: usize) -> Result<Exit, Failure> {
        let (letters, seen) = self.dead.list(selector, limit).await.map_err(failure)?;
        let rows: Box<dyn Iterator<Item = String>> = if self.json {
            Box::new(form::json_rows(&letters))
        } else {
            Box::new(form::table(&letters))
        };
        for chunk in rows {
            print::data(chunk.as_bytes())
                .await
                .map_err(|error| Failure::io("write to stdout", &error))?;
        }
        if letters.is_empty() {
            print::note(&format!("no dead letters that fit in queue {:?}", self.queue));
        }
        note_missing(seen);
        Ok(Exit::Done)
    }

    async fn show(&self, id: String) -> Result<Exit, Failure> {
        let selector = Selector {
            ids: BTreeSet::from([id]),
            ..Selector::default()
        };
        let mut first = true;
        let shown = self.dead.show(&selector, async |letter, envelope| {
            let text = match (self.json, std::mem::take(&mut first)) {
                (true, _) => form::whole_as_json(letter, envelope),
                (false, true) => form::whole(letter, envelope),
                (false, false) => [b"\n", form::whole(letter, envelope).as_slice()].concat(),
            };
            print::data(&text).await
        });
        note_missing(shown.await.map_err(failure)?);
        if first {
            return Err(self.not_found(&selector.ids));
        }
        Ok(Exit::Done)
    }

    /// Does it, and tells of each letter as it is done.
    async fn act(&self, selector: &Selector, act: Act) -> Result<Exit, Failure> {
        let mut told = Told::new(selector);
        let tell = async |letter: &Letter| {
            told.count(letter);
            self.tell(letter).await
        };
        let done = match act {
            Act::Retry => self.dead.retry(selector, tell).await,
            Act::Drop => self.dead.drop(selector, tell).await,
        };
        print::note(&format!("{} {}", act.done(), letters(told.done)));
        note_missing(done.map_err(failure)?);
        self.conclude(&told)
    }

    /// Tells what would be done.
    async fn rehearse(&self, selector: &Selector, act: Act) -> Result<Exit, Failure> {
        let (found, seen) = self.dead.list(selector, usize::MAX).await.map_err(failure)?;
        if act == Act::Retry {
            let pools = found.iter().map(|letter| letter.pool.clone()).collect();
            self.dead.check_pools(&pools).await.map_err(failure)?;
        }
        let mut told = Told::new(selector);
        for letter in &found {
            told.count(letter);
            self.tell(letter)
                .await
                .map_err(|error| Failure::io("write to stdout", &error))?;
        }
        print::note(&format!("would have {} {}", act.done(), letters(told.done)));
        note_missing(seen);
        self.conclude(&told)
    }

    async fn tell(&self, letter: &Letter) -> io::Result<()> {
        print::line(&if self.json {
            form::json(letter)
        } else {
            form::id(letter)
        })
        .await
    }

    fn conclude(&self, told: &Told) -> Result<Exit, Failure> {
        if told.missing.is_empty() {
            return Ok(Exit::Done);
        }
        Err(self.not_found(&told.missing))
    }

    fn not_found(&self, ids: &BTreeSet<String>) -> Failure {
        let lines: Vec<String> = ids
            .iter()
            .map(|id| format!("queue {:?} has no dead letter of job {id:?}", self.queue))
            .collect();
        Failure::new(Exit::Failure, lines.join("\n"))
    }
}

/// What was told of, and the ids that were asked for and have not come.
struct Told {
    done: usize,
    missing: BTreeSet<String>,
}

impl Told {
    fn new(selector: &Selector) -> Self {
        Self {
            done: 0,
            missing: selector.ids.clone(),
        }
    }

    fn count(&mut self, letter: &Letter) {
        self.done += 1;
        self.missing.retain(|id| !letter.is_called(id));
    }
}

impl Act {
    const fn done(self) -> &'static str {
        match self {
            Self::Retry => "submitted again the jobs of",
            Self::Drop => "dropped",
        }
    }
}

fn letters(count: usize) -> String {
    match count {
        1 => "1 dead letter".to_owned(),
        _ => format!("{count} dead letters"),
    }
}

fn note_missing(seen: Seen) {
    if seen.missing > 0 {
        print::note(&format!(
            "{} more were there at first and not seen: another client has taken them",
            letters(seen.missing)
        ));
    }
}

/// What is said of a pass over letters that did not come to its end.
pub(super) fn failure(error: DeadError) -> Failure {
    match error {
        DeadError::Transport(error) => broker_failure(&error),
        DeadError::Publish(error) => error.into_failure(),
        DeadError::NoQueue(_) | DeadError::NoPoolQueue(_) => Failure::new(Exit::Config, format!("failed to {error}")),
        DeadError::Lost { .. } => Failure::new(
            Exit::Unavailable,
            format!("failed to {error}; no letter is lost, run it again"),
        ),
        DeadError::Tell(error) => Failure::io("write to stdout", &error),
    }
}
