//! The sender: one thread and one epoll over all connections, so that as little as possible of the machine goes to it.
//! In a closed loop each connection sends its next request when the last one is answered; in an open loop requests
//! are due at a fixed rate, and their latency counts from then, so that a server that falls behind cannot hide it.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::time::Instant;

use crate::requests::Deliveries;

/// How long answers are waited for after the last request.
const PATIENCE: Duration = Duration::from_secs(10);
/// The timer among the events; connections are their indexes.
const TIMER: u64 = u64::MAX;

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as they are answered.
    Closed,
    /// So many a second, whatever the answers do.
    Open(u64),
}

/// What is sent.
pub(crate) struct Load<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) deliveries: &'a Deliveries,
    pub(crate) pace: Pace,
    /// Sent before, and not counted.
    pub(crate) warm_up: Duration,
    /// What is counted. It ends early when there are no more deliveries.
    pub(crate) window: Duration,
}

/// What came back.
pub(crate) struct Answers {
    /// When the first request was sent.
    pub(crate) began: Instant,
    /// Answered with a 2xx within the window.
    pub(crate) accepted: u64,
    /// The same with warm-up and what was answered after the window.
    pub(crate) accepted_in_all: u64,
    /// Other answers, and requests that got none.
    pub(crate) failed: u64,
    /// Length of the window.
    pub(crate) window: Duration,
    /// Microseconds of each request that was due within the window.
    pub(crate) latency: Histogram<u64>,
}

struct Connection {
    stream: TcpStream,
    /// The request that is under way, how much of it is written, and when it was due.
    request: Option<(usize, usize, Instant)>,
    answer: [u8; 1024],
    filled: usize,
}

/// An answer, as far as it matters here.
struct Answer {
    accepted: bool,
    closes: bool,
}

struct Sender<'a> {
    load: &'a Load<'a>,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    /// Due, and without a connection.
    backlog: VecDeque<Instant>,
    /// Requests that have fallen due in an open loop.
    due: usize,
    /// Requests that have been begun.
    sent: usize,
    begin: Instant,
    end: Instant,
    answers: Answers,
}

/// Sends `load`, with `at_window` called where the window begins and where it ends.
pub(crate) fn send(load: &Load<'_>, mut at_window: impl FnMut()) -> Answers {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).unwrap();
    epoll::add(
        &epoll,
        &timer,
        epoll::EventData::new_u64(TIMER),
        epoll::EventFlags::IN | epoll::EventFlags::ET,
    )
    .unwrap();
    let connections: Vec<_> =
        (0..load.connections).map(|index| connect(&epoll, load.address, index)).collect();
    let began = Instant::now();
    let begin = began + load.warm_up;
    let mut sender = Sender {
        load,
        epoll,
        idle: (0..connections.len()).collect(),
        connections,
        backlog: VecDeque::new(),
        due: 0,
        sent: 0,
        begin,
        end: begin + load.window,
        answers: Answers {
            began,
            accepted: 0,
            accepted_in_all: 0,
            failed: 0,
            window: load.window,
            latency: Histogram::new_with_bounds(1, 120_000_000, 3).unwrap(),
        },
    };
    let (mut begun, mut ended) = (false, false);
    let mut events = Vec::with_capacity(256);
    let mut armed = None;
    loop {
        let now = Instant::now();
        if !begun && now >= sender.begin {
            begun = true;
            at_window();
        }
        if load.pace == Pace::Closed && sender.sent == load.deliveries.len() && sender.end > now {
            sender.end = now;
        }
        if begun && !ended && now >= sender.end {
            ended = true;
            sender.answers.window = sender.end - sender.begin;
            at_window();
        }
        if ended && sender.idle.len() == load.connections && sender.backlog.is_empty() {
            break;
        }
        if now > sender.end + PATIENCE {
            sender.answers.failed += (load.connections - sender.idle.len() + sender.backlog.len()) as u64;
            break;
        }
        sender.begin_due(now);

        let marks = [Some(sender.begin), Some(sender.end), Some(sender.end + PATIENCE), sender.next_due()];
        let next = marks.into_iter().flatten().filter(|at| *at > now).min();
        if next != armed {
            armed = next;
            arm(&timer, next.map_or(PATIENCE, |at| at - now));
        }
        events.clear();
        epoll::wait(&sender.epoll, spare_capacity(&mut events), None).unwrap();
        for event in &events {
            match event.data.u64() {
                TIMER => armed = None,
                index => sender.progress(usize::try_from(index).unwrap()),
            }
        }
    }
    sender.answers
}

impl Sender<'_> {
    /// Begins what is due, as far as there are free connections.
    fn begin_due(&mut self, now: Instant) {
        match self.load.pace {
            Pace::Closed => {
                while self.goes_on(now)
                    && let Some(index) = self.idle.pop()
                {
                    self.begin_on(index, Instant::now());
                }
            }
            Pace::Open(_) => {
                while let Some(due) = self.next_due().filter(|due| *due <= now) {
                    self.due += 1;
                    match self.idle.pop() {
                        Some(index) => self.begin_on(index, due),
                        None => self.backlog.push_back(due),
                    }
                }
            }
        }
    }

    /// Whether a closed loop sends more.
    fn goes_on(&self, now: Instant) -> bool {
        now < self.end && self.sent < self.load.deliveries.len()
    }

    fn next_due(&self) -> Option<Instant> {
        let Pace::Open(rate) = self.load.pace else { return None };
        let due = self.answers.began + Duration::from_nanos(self.due as u64 * 1_000_000_000 / rate);
        (due < self.end && self.due < self.load.deliveries.len()).then_some(due)
    }

    fn begin_on(&mut self, index: usize, due: Instant) {
        let connection = &mut self.connections[index];
        connection.request = Some((self.sent, 0, due));
        self.sent += 1;
        if connection.write(self.load.deliveries).is_err() {
            self.lose(index);
        }
    }

    /// Something has happened on a connection.
    fn progress(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        match connection.write(self.load.deliveries).and_then(|()| connection.read()) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                let now = Instant::now();
                if let Some((_, _, due)) = connection.request.take() {
                    self.note(&answer, due, now);
                }
                if answer.closes {
                    self.connections[index] = connect(&self.epoll, self.load.address, index);
                }
                self.free(index, now);
            }
            Err(_) => self.lose(index),
        }
    }

    /// The connection is gone, with the request on it.
    fn lose(&mut self, index: usize) {
        let lost = self.connections[index].request.take().is_some();
        self.connections[index] = connect(&self.epoll, self.load.address, index);
        if lost {
            self.answers.failed += 1;
            self.idle.push(index);
        }
    }

    fn note(&mut self, answer: &Answer, due: Instant, now: Instant) {
        if !answer.accepted {
            self.answers.failed += 1;
            return;
        }
        self.answers.accepted_in_all += 1;
        let window = self.begin..self.end;
        if window.contains(&now) {
            self.answers.accepted += 1;
        }
        if window.contains(&due) {
            let microseconds = (now - due).as_micros().try_into().unwrap_or(u64::MAX);
            self.answers.latency.saturating_record(microseconds);
        }
    }

    /// Gives a connection its next request, if there is one.
    fn free(&mut self, index: usize, now: Instant) {
        let due = match self.load.pace {
            Pace::Closed => self.goes_on(now).then_some(now),
            Pace::Open(_) => self.backlog.pop_front(),
        };
        match due {
            Some(due) => self.begin_on(index, due),
            None => self.idle.push(index),
        }
    }
}

impl Connection {
    fn write(&mut self, deliveries: &Deliveries) -> std::io::Result<()> {
        let Some((delivery, written, _)) = &mut self.request else { return Ok(()) };
        let pieces = deliveries.pieces(*delivery);
        let length = pieces[0].len() + pieces[1].len();
        while *written < length {
            let mut slices = pieces.map(IoSlice::new);
            let mut rest = &mut slices[..];
            IoSlice::advance_slices(&mut rest, *written);
            match self.stream.write_vectored(rest) {
                Ok(count) => *written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> std::io::Result<Option<Answer>> {
        match self.stream.read(&mut self.answer[self.filled..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        let answer = &self.answer[..self.filled];
        if !answer.ends_with(b"\r\n\r\n") {
            return Ok(None);
        }
        let closes = answer.windows(17).any(|text| text.eq_ignore_ascii_case(b"connection: close"));
        let accepted = answer.starts_with(b"HTTP/1.1 2");
        self.filled = 0;
        Ok(Some(Answer { accepted, closes }))
    }
}

fn connect(epoll: &OwnedFd, address: SocketAddr, index: usize) -> Connection {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(epoll, &stream, epoll::EventData::new_u64(index as u64), flags).unwrap();
    Connection { stream, request: None, answer: [0; 1024], filled: 0 }
}

fn arm(timer: &OwnedFd, delay: Duration) {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let delay =
        Timespec { tv_sec: delay.as_secs().try_into().unwrap(), tv_nsec: delay.subsec_nanos().max(1).into() };
    let once = Itimerspec { it_interval: zero, it_value: delay };
    rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).unwrap();
}
