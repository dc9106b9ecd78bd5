//! `synthex logs`: what a command has written, and what it writes.

use std::cell::Cell;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::exit::{Exit, Failure};
use super::operator::{Inbox, Operator, OperatorArgs, out};
use super::print;
use crate::control::explain::{Facts, Verdict, explain};
use crate::control::fleet::{Question, Target, Wait};
use crate::events::{Said, Transcript};
use crate::message::event::{Event, RunId};
use crate::message::{Chunk, JobId, Reply, Request, Span, Status, Stream, now};
use crate::transport::{Delivery, Publication, Subscription};

/// How often to say that somebody still listens: a few times in the 30 s for which a worker takes it for said.
const RENEW: Duration = Duration::from_secs(10);
/// Silence after which to say what is waited for.
const SILENCE: Duration = Duration::from_secs(2);
/// After a worker's word on how a job has ended, another may say that it runs.
const BETWEEN_ANSWERS: Duration = Duration::from_millis(300);

/// Print the output of a job that runs now.
///
/// Prints what was kept of it so far and ends. With --follow it goes on until the job has ended, over all its attempts:
/// what the command writes to stdout goes to stdout, stderr to stderr, as it is written. Each byte comes once; bytes that
/// were not kept, or came faster than they could be sent, are told. A job that nobody runs now is waited for. The output
/// of a job that has ended is in its result: of one whose end a worker remembers it is said how it ended.
///
/// Exit code 0 once the job has ended, however it ended (`synthex submit --follow` exits as the job did), or, without
/// --follow, once what was kept is printed.
#[derive(Args)]
pub(super) struct LogsArgs {
    /// The job
    id: JobId,
    /// Go on until the job has ended
    #[arg(short, long)]
    follow: bool,
    /// How long to wait for a worker that runs the job, without --follow; then exit code 75
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    wait: Span,
    /// With --follow: give up after this time, exit code 75; the job goes on
    #[arg(long, value_name = "DURATION", requires = "follow")]
    wait_timeout: Option<Span>,
    /// Print the events, one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

impl LogsArgs {
    fn printer(&self) -> Printer {
        Printer {
            json: self.json,
            notes_ends: true,
        }
    }
}

pub(super) async fn run(args: LogsArgs) -> Result<Exit, Failure> {
    let operator = Operator::new(&args.operator)?;
    let is_seen = Cell::new(false);
    let done = match (args.follow, args.wait_timeout) {
        (false, _) => look(&operator, &args).await,
        (true, None) => follow(&operator, &args, &is_seen).await,
        (true, Some(limit)) => timeout(limit.get(), follow(&operator, &args, &is_seen))
            .await
            .unwrap_or_else(|_| Err(gave_up(&args.id, limit, is_seen.get()))),
    };
    operator.end(done).await
}

fn gave_up(id: &JobId, limit: Span, is_seen: bool) -> Failure {
    let message = match is_seen {
        true => format!("job {id} has not ended within {limit}; it goes on"),
        false => format!("job {id} was not seen within {limit}; `synthex explain {id}` says where it may be"),
    };
    Failure::new(Exit::TimedOut, message)
}

/// What `explain` says of a job that has ended, if a worker remembers that and none has it again.
async fn ended(operator: &Operator<'_>, job: &JobId, most: Duration) -> Result<Option<String>, Failure> {
    let mut inbox = operator.inbox().await?;
    let wait = Wait {
        most,
        between: BETWEEN_ANSWERS.min(most / 2),
    };
    let inventories = operator.inventories(&mut inbox, Some(job), wait).await?;
    let facts = Facts {
        inventories,
        ..Facts::default()
    };
    let explanation = explain(job, &facts, now());
    let has_ended = matches!(explanation.verdict, Verdict::Finished { .. });
    Ok(has_ended.then(|| format!("{}; its output is in its result", explanation.message)))
}

/// What was written so far.
async fn look(operator: &Operator<'_>, args: &LogsArgs) -> Result<Exit, Failure> {
    let mut inbox = operator.inbox().await?;
    let job = args.id.clone();
    let request = question(operator, &Request::Output { job }, &inbox);
    if operator.publish(&request).await? {
        let mut transcript = Transcript::default();
        let answer = async {
            while let Some(delivery) = inbox.subscription.next().await {
                if let Heard::Output(said) = hear(&mut transcript, &args.id, delivery).await {
                    return Some(said);
                }
            }
            None
        };
        let mut answer = pin!(timeout(args.wait.get(), answer));
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            ended = ended(operator, &args.id, args.wait.get()) => match ended? {
                Some(words) => {
                    print::note(&words);
                    return Ok(Exit::Done);
                }
                None => answer.await,
            },
        };
        if let Ok(Some(said)) = answered {
            args.printer().print_all(&said).await?;
            return Ok(Exit::Done);
        }
    }
    let message = format!(
        "no worker that answered within {} runs job {}, or remembers its end; --follow waits for it",
        args.wait, args.id
    );
    Err(Failure::new(Exit::TimedOut, message))
}

/// All that is written, to the job's end. `is_seen` becomes true once a worker has said something of it.
async fn follow(operator: &Operator<'_>, args: &LogsArgs, is_seen: &Cell<bool>) -> Result<Exit, Failure> {
    let printer = args.printer();
    let mut transcript = Transcript::default();
    let mut inbox = operator.overhear(&args.id).await?;
    let request = Request::Follow { job: args.id.clone() };
    let mut asking = question(operator, &request, &inbox);
    let mut renew = interval(RENEW);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (silent_until, mut is_told) = (Instant::now() + SILENCE, false);
    // A job may also have ended without a word to us. What is heard meanwhile is later than what is remembered.
    let mut end = Box::pin(ended(operator, &args.id, SILENCE));
    let (mut asks_for_end, mut is_silent) = (true, true);
    loop {
        let heard = tokio::select! {
            biased; // an end that is remembered only where nothing else is heard
            _ = renew.tick() => {
                end = Box::pin(ended(operator, &args.id, SILENCE));
                (asks_for_end, is_silent) = (true, true);
                if transcript.is_behind() {
                    asking = question(operator, &request, &inbox); // another question has another answer
                }
                operator.publish(&asking).await?;
                continue;
            }
            () = sleep_until(silent_until), if !is_told => {
                is_told = true;
                print::note(&waits(&args.id));
                continue;
            }
            delivery = inbox.subscription.next() => match delivery {
                Some(delivery) => hear(&mut transcript, &args.id, delivery).await,
                None => {
                    inbox = operator.overhear(&args.id).await?;
                    asking = question(operator, &request, &inbox);
                    renew.reset_immediately();
                    continue;
                }
            },
            ended = &mut end, if asks_for_end => {
                asks_for_end = false;
                // Trouble with the broker is met above.
                if let (Ok(Some(words)), true) = (ended, is_silent) {
                    print::note(&words);
                    return Ok(Exit::Done);
                }
                continue;
            }
        };
        let Heard::Output(said) = heard else { continue };
        is_told = true;
        is_silent = false;
        is_seen.set(true);
        printer.print_all(&said).await?;
        if let Some(Said::Ended { is_final: true, .. }) = said.last() {
            return Ok(Exit::Done);
        }
    }
}

fn waits(id: &JobId) -> String {
    format!("no worker runs job {id} now, or remembers its end; waiting (`synthex explain {id}` says where it is)")
}

fn question(operator: &Operator<'_>, request: &Request, inbox: &Inbox) -> Publication {
    Question::new(&operator.names, Target::All, request, &inbox.name).publication
}

/// What a message was about.
enum Heard {
    Output(Vec<Said>),
    Other,
}

async fn hear(transcript: &mut Transcript, job: &JobId, delivery: Delivery) -> Heard {
    let body = delivery.envelope.body.clone();
    // It goes with our queue all the same.
    let _ = delivery.ack().await;
    if let Ok(event) = Event::decode(&body) {
        return Heard::Output(transcript.event(&event));
    }
    match Reply::decode(&body) {
        Ok(Reply::Output { run, chunks }) if run.job_id == *job => Heard::Output(transcript.answer(&run, &chunks)),
        Ok(Reply::Refused { message }) => {
            print::note(&format!("a worker refuses: {message}"));
            Heard::Other
        }
        _ => Heard::Other,
    }
}

/// Takes a message of a job's output, and makes of it what there is to print.
pub(super) async fn overheard(transcript: &mut Transcript, delivery: Delivery) -> Vec<Said> {
    let event = Event::decode(&delivery.envelope.body);
    // It goes with our queue all the same.
    let _ = delivery.ack().await;
    event.map(|event| transcript.event(&event)).unwrap_or_default()
}

/// Writes output where the command would have written it, or as events.
#[derive(Clone, Copy)]
pub(super) struct Printer {
    pub(super) json: bool,
    /// Whether it says to people how attempts ended.
    pub(super) notes_ends: bool,
}

impl Printer {
    pub(super) async fn print_all(self, said: &[Said]) -> Result<(), Failure> {
        for said in said {
            match said {
                Said::Bytes(run, chunk) => self.bytes(run, chunk).await?,
                Said::Missing(stream, bytes) => print::note(&format!(
                    "{bytes} bytes of {} are missing here: not kept, or more than could be sent",
                    stream.as_str()
                )),
                Said::Ended {
                    run,
                    status,
                    is_final,
                    bytes,
                } => self.end(run, *status, *is_final, *bytes).await?,
                Said::Began(run) if run.attempt > 1 => {
                    print::note(&format!(
                        "job {} runs on {} (attempt {})",
                        run.job_id, run.worker, run.attempt
                    ));
                }
                Said::Began(_) => {}
            }
        }
        Ok(())
    }

    async fn bytes(self, run: &RunId, chunk: &Chunk) -> Result<(), Failure> {
        if self.json {
            let event = Event::Output {
                run: run.clone(),
                chunk: chunk.clone(),
            };
            return out(&String::from_utf8_lossy(&event.encode())).await;
        }
        let bytes = chunk.decode().map_err(std::io::Error::other);
        let written = match (bytes, chunk.stream) {
            (Err(error), _) => Err(error),
            (Ok(bytes), Stream::Stdout) => print::data(&bytes).await,
            (Ok(bytes), Stream::Stderr) => print::raw_error(&bytes).await,
        };
        written.map_err(|error| Failure::io("write the output", &error))
    }

    /// Says how an attempt ended; to people only if that is news.
    async fn end(self, run: &RunId, status: Status, is_final: bool, bytes: [u64; 2]) -> Result<(), Failure> {
        if self.json {
            let event = Event::OutputEnded {
                run: run.clone(),
                status,
                is_final,
                stdout_bytes: bytes[0],
                stderr_bytes: bytes[1],
            };
            return out(&String::from_utf8_lossy(&event.encode())).await;
        }
        if self.notes_ends && (!is_final || status != Status::Succeeded) {
            let again = if is_final { "" } else { "; it will be tried again" };
            print::note(&format!("job {} {status} (attempt {}){again}", run.job_id, run.attempt));
        }
        Ok(())
    }
}
