//! A captcha server and the faucet behind it: `tests/programs/captcha_faucet.py`, from outside.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;

use crate::{Anvil, Background};

const START_DEADLINE: Duration = Duration::from_secs(60);

/// How the captcha server says what is to be solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Puzzles {
    /// One by one.
    Sent,
    /// Only how many there are; they follow from the token.
    Derived,
}

/// Gives a tenth of an ETH to whoever has solved three easy puzzles. Ends with this value.
#[derive(Debug)]
pub struct CaptchaFaucet {
    process: Background,
    port: u16,
}

impl CaptchaFaucet {
    /// # Errors
    /// When there is no Python, or it does not start.
    pub async fn start(chain: &Anvil, puzzles: Puzzles) -> Result<CaptchaFaucet> {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/captcha_faucet.py");
        let mut command = Command::new("python3");
        command.arg(program).arg(chain.url()).arg(match puzzles {
            Puzzles::Sent => "sent",
            Puzzles::Derived => "derived",
        });
        let mut process = Background::start("the faucet", &mut command)?;
        let port = process
            .printed(START_DEADLINE, |line| {
                line.strip_prefix("Listening on 127.0.0.1:")?.parse().ok()
            })
            .await?;
        Ok(CaptchaFaucet { process, port })
    }

    pub fn captcha_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn faucet_url(&self) -> String {
        format!("http://127.0.0.1:{}/faucet", self.port)
    }

    /// How many questions it has answered.
    ///
    /// # Errors
    /// When what it printed cannot be read.
    pub fn questions(&self) -> Result<usize> {
        Ok(self.process.output()?.lines().filter(|line| line.starts_with("POST ")).count())
    }
}
