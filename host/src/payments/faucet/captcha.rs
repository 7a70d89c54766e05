//! The puzzles that stand before a faucet: read, bounded, solved. Nothing here asks anybody anything.
//!
//! A puzzle is a salt and some hex digits; its solution is the smallest number that, written behind the salt, gives a SHA-256
//! that begins with those digits. Older servers send the puzzles, newer ones send how many there are and let them be derived
//! from the token.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Servers ask for fifty.
const MAX_PUZZLES: usize = 500;
const MAX_SALT_BYTES: usize = 256;
const MAX_TOKEN_BYTES: usize = 1024;
/// Servers ask for four.
const MAX_DIGITS: usize = 7;
/// What all puzzles together may take on average: minutes. Servers ask for three million.
const MAX_EXPECTED_HASHES: u64 = 1 << 30;
/// How often a thread looks whether it shall end.
const LOOK_EVERY: u64 = 8192;

/// What a captcha server wants solved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    token: String,
    puzzles: Vec<Puzzle>,
    /// Do solutions repeat their puzzles?
    spelled_out: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Puzzle {
    salt: String,
    target: String,
}

/// Why there is no solution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaptchaError {
    #[error("the captcha server's challenge is in no known form")]
    Malformed,
    #[error("the captcha server asks for more work than is reasonable")]
    TooMuchWork,
    #[error("the captcha's puzzles were not solved in time")]
    Late,
    #[error("broken off")]
    BrokenOff,
}

#[derive(Deserialize)]
struct Answer {
    challenge: Form,
    token: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Sent(Vec<(String, String)>),
    Derived { c: usize, s: usize, d: usize },
}

impl Challenge {
    /// Reads what the server answered.
    ///
    /// # Errors
    /// It is in no known form, or asks for too much.
    pub fn read(answer: &[u8]) -> Result<Self, CaptchaError> {
        let Answer { challenge, token } =
            serde_json::from_slice(answer).map_err(|_| CaptchaError::Malformed)?;
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES || !token.is_ascii() {
            return Err(CaptchaError::Malformed);
        }
        let (puzzles, spelled_out): (Vec<Puzzle>, bool) = match challenge {
            Form::Sent(pairs) => {
                let puzzle = |(salt, target): (String, String)| Puzzle {
                    salt,
                    target: target.to_ascii_lowercase(),
                };
                (pairs.into_iter().map(puzzle).collect(), true)
            }
            Form::Derived { c, s, d } => {
                if c > MAX_PUZZLES || s > MAX_SALT_BYTES || d > MAX_DIGITS {
                    return Err(CaptchaError::TooMuchWork);
                }
                let puzzle = |number: usize| Puzzle {
                    salt: derived(&format!("{token}{number}"), s),
                    target: derived(&format!("{token}{number}d"), d),
                };
                ((1..=c).map(puzzle).collect(), false)
            }
        };
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if puzzles.is_empty() || !puzzles.iter().all(|puzzle| is_hex(&puzzle.target)) {
            return Err(CaptchaError::Malformed);
        }
        let too_long = |puzzle: &Puzzle| {
            puzzle.salt.len() > MAX_SALT_BYTES || puzzle.target.len() > MAX_DIGITS
        };
        if puzzles.len() > MAX_PUZZLES || puzzles.iter().any(too_long) {
            return Err(CaptchaError::TooMuchWork);
        }
        let expected: u64 = puzzles.iter().map(|puzzle| 1 << (4 * puzzle.target.len())).sum();
        match expected <= MAX_EXPECTED_HASHES {
            true => Ok(Self { token, puzzles, spelled_out }),
            false => Err(CaptchaError::TooMuchWork),
        }
    }

    /// How many puzzles there are.
    pub fn len(&self) -> usize {
        self.puzzles.len()
    }

    /// Solves all puzzles with all processors. Blocks until then, until `deadline` or until `stop`; calls `solved` after each.
    ///
    /// # Errors
    /// It took too long, or was stopped.
    pub fn solve(
        &self,
        deadline: Instant,
        stop: &AtomicBool,
        solved: &(dyn Fn() + Sync),
    ) -> Result<Vec<u64>, CaptchaError> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(self.len());
        let next = AtomicUsize::new(0);
        let nonces = Mutex::new(vec![0; self.len()]);
        let ended = thread::scope(|scope| {
            let work = || {
                while let Some(puzzle) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    self.puzzles.get(number).map(|puzzle| (number, puzzle))
                } {
                    let nonce = puzzle.1.solve(deadline, stop)?;
                    nonces.lock().unwrap_or_else(PoisonError::into_inner)[puzzle.0] = nonce;
                    solved();
                }
                Ok(())
            };
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            running
                .into_iter()
                .map(|thread| thread.join().unwrap_or(Err(CaptchaError::BrokenOff)))
                .collect::<Result<Vec<()>, CaptchaError>>()
        });
        ended?;
        Ok(nonces.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the server is sent with these solutions.
    pub fn redemption(&self, nonces: &[u64]) -> Value {
        let solutions: Vec<Value> = match self.spelled_out {
            true => {
                let solved = self.puzzles.iter().zip(nonces);
                solved.map(|(puzzle, nonce)| json!([puzzle.salt, puzzle.target, nonce])).collect()
            }
            false => nonces.iter().map(|nonce| json!(nonce)).collect(),
        };
        json!({ "token": self.token, "solutions": solutions })
    }
}

impl Puzzle {
    fn solve(&self, deadline: Instant, stop: &AtomicBool) -> Result<u64, CaptchaError> {
        let salted = Sha256::new_with_prefix(&self.salt);
        let target: Vec<u8> =
            self.target.chars().filter_map(|digit| Some(digit.to_digit(16)? as u8)).collect();
        let mut decimal = String::with_capacity(20);
        for nonce in 0_u64.. {
            if nonce % LOOK_EVERY == 0 {
                if stop.load(Ordering::Relaxed) {
                    return Err(CaptchaError::BrokenOff);
                }
                if Instant::now() >= deadline {
                    return Err(CaptchaError::Late);
                }
            }
            decimal.clear();
            // Writing to a string does not fail.
            let _ = std::fmt::Write::write_fmt(&mut decimal, format_args!("{nonce}"));
            let digest = salted.clone().chain_update(&decimal).finalize();
            let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
            if digits.zip(&target).all(|(digit, wanted)| digit == *wanted) {
                return Ok(nonce);
            }
        }
        Err(CaptchaError::Late)
    }
}

/// So many hex digits that follow from a text: FNV-1a of it, then xorshift.
fn derived(seed: &str, digits: usize) -> String {
    let mut state = seed
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut text = String::new();
    while text.len() < digits {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        text.push_str(&format!("{state:08x}"));
    }
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../../tests/vectors/faucet_vectors.json")).unwrap()
    }

    fn read(answer: &Value) -> Result<Challenge, CaptchaError> {
        Challenge::read(answer.to_string().as_bytes())
    }

    fn solved(challenge: &Challenge) -> Value {
        let deadline = Instant::now() + Duration::from_secs(600);
        let count = AtomicUsize::new(0);
        let nonces = challenge.solve(deadline, &AtomicBool::new(false), &|| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), challenge.len());
        challenge.redemption(&nonces.unwrap())
    }

    #[test]
    fn puzzles_that_are_sent_are_solved_as_their_server_wants_it() {
        let v1 = &vectors()["v1"];
        let sent = solved(&read(&v1["challenge"]).unwrap());
        assert_eq!(sent["solutions"], v1["solutions"]);
        assert_eq!(sent["token"], v1["challenge"]["token"]);
        let odd = &v1["odd_length_target"];
        let challenge = json!({ "challenge": odd["challenge"], "token": "t", "expires": 1 });
        assert_eq!(solved(&read(&challenge).unwrap())["solutions"], odd["solutions"]);
    }

    #[test]
    fn puzzles_that_follow_from_the_token_are_derived_and_solved() {
        let v4 = &vectors()["v4"];
        let challenge = read(&v4["challenge"]).unwrap();
        let pairs: Vec<Value> =
            challenge.puzzles.iter().map(|puzzle| json!([puzzle.salt, puzzle.target])).collect();
        assert_eq!(Value::from(pairs), v4["derived_pairs"]);
        let sent = solved(&challenge);
        assert_eq!(sent["solutions"], v4["solutions"]);
        assert_eq!(sent["token"], v4["challenge"]["token"]);
    }

    #[test]
    fn a_challenge_that_would_take_for_ever_is_refused() {
        let many: Vec<Value> = (0..501).map(|_| json!(["ab", "1"])).collect();
        for challenge in [
            json!({ "c": 501, "s": 32, "d": 4 }),
            json!({ "c": 1, "s": 32, "d": 8 }),
            json!({ "c": 500, "s": 32, "d": 7 }),
            json!({ "c": 1, "s": 1_000_000_000, "d": 4 }),
            json!([["ab", "12345678"]]),
            json!(many),
        ] {
            let answer = json!({ "challenge": challenge, "token": "t" });
            assert_eq!(read(&answer), Err(CaptchaError::TooMuchWork), "{challenge}");
        }
    }

    #[test]
    fn what_is_no_challenge_is_refused() {
        for challenge in [
            json!([]),
            json!([["ab"]]),
            json!([["ab", "xy"]]),
            json!("ab"),
            json!({ "c": 0, "s": 32, "d": 4 }),
            json!({ "c": -1, "s": 32, "d": 4 }),
        ] {
            let answer = json!({ "challenge": challenge, "token": "t" });
            assert_eq!(read(&answer), Err(CaptchaError::Malformed), "{challenge}");
        }
        assert!(Challenge::read(b"<html>").is_err());
        assert!(read(&json!({ "challenge": [["ab", "1"]] })).is_err());
    }

    #[test]
    fn solving_ends_when_it_is_stopped_or_late() {
        let challenge = read(&json!({ "challenge": [["ab", "0000000"]], "token": "t" })).unwrap();
        let solve = |deadline, stop| challenge.solve(deadline, &AtomicBool::new(stop), &|| ());
        assert_eq!(solve(Instant::now(), false), Err(CaptchaError::Late));
        let later = Instant::now() + Duration::from_secs(600);
        assert_eq!(solve(later, true), Err(CaptchaError::BrokenOff));
    }
}
