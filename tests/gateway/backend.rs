//! A backend that writes down what it gets and answers as it is told.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::eventually;

/// A request as it came off the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Got {
    /// The value of the only header of this name.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(existing, _)| existing == name);
        let value = values.next().map(|(_, value)| std::str::from_utf8(value).unwrap());
        assert!(values.next().is_none(), "{name} came twice");
        value
    }
}

/// What a backend does with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    Status(u16),
    /// These bytes, and then the next request.
    Raw(&'static str),
    /// These bytes, and then the end of the connection.
    Last(&'static str),
    /// Never.
    Hang,
}

type Script = dyn Fn(usize, &Got) -> Reply + Send + Sync;

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Backend {
    /// Answers each request, counted from 0, as `script` says.
    pub(crate) fn start(script: impl Fn(usize, &Got) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let (seen, script): (_, Arc<Script>) = (Arc::clone(&got), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), seen, script) = (stream, Arc::clone(&seen), Arc::clone(&script)) else {
                    continue;
                };
                thread::spawn(move || serve(stream, &seen, &*script));
            }
        });
        Self { address, got }
    }

    pub(crate) fn accepting() -> Self {
        Self::start(|_, _| Reply::Status(200))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    /// Everything that came so far.
    pub(crate) fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Waits for so many requests, and answers them.
    #[track_caller]
    pub(crate) fn eventually_got(&self, count: usize) -> Vec<Got> {
        eventually(&format!("the backend gets {count} requests"), || self.got.lock().unwrap().len() >= count);
        self.got()
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Got>>, script: &Script) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(got) = read_request(&mut reader) {
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(got.clone());
            seen.len() - 1
        };
        match script(number, &got) {
            Reply::Status(status) => {
                // In one piece: the rest of a second one would wait for the first one's acknowledgement.
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                if writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Reply::Raw(answer) => {
                if writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Reply::Last(answer) => {
                let _ = writer.write_all(answer.as_bytes());
                let _ = writer.shutdown(std::net::Shutdown::Both);
                return;
            }
            Reply::Hang => loop {
                thread::park();
            },
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Got> {
    let line = read_line(reader)?;
    let line = String::from_utf8(line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = String::from_utf8(line[..colon].to_vec()).ok()?.to_lowercase();
        headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(0, |(_, value)| std::str::from_utf8(value).unwrap().parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Got { method, target, headers, body })
}

fn read_line(reader: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok()?;
    line.ends_with(b"\r\n").then(|| line[..line.len() - 2].to_vec())
}
