//! What is said to the keeper, and what its answers mean to the machine.

use super::*;

impl Driver {
    /// Tells a keeper that works, whoever started it, what we are about.
    pub(super) fn instruct(&mut self) {
        let timers = self.plan.setup.timers;
        let kept = self.plan.kept.clone();
        self.ask(ToKeeper::Setup { timers });
        let interfaces = self.tracks.interfaces();
        self.ask(ToKeeper::Watch { kept, interfaces });
    }

    /// Notes what the keeper is told at the end of this round, unless it is known not to listen; whether that was noted.
    pub(super) fn ask(&mut self, message: ToKeeper) -> bool {
        if !self.trust.works() {
            return false;
        }
        self.keeper.send(message);
        true
    }

    pub(super) fn check_keeper(&mut self, now: Instant) {
        if self.trust.is_late(now, self.plan.setup.timers.keeper_patience) {
            self.keeper_stuck(now, "does not answer");
        }
        if let Some(number) = self.trust.reset() {
            // What was asked before is void; sent once, when there is room, and answered once.
            self.keeper.send(ToKeeper::Reset { number });
        }
    }

    pub(super) fn keeper_stuck(&mut self, now: Instant, why: &str) {
        if self.trust.doubt() {
            self.keeper_fails(now, why);
        }
    }

    fn keeper_fails(&mut self, now: Instant, why: &str) {
        self.tell(Event::Keeper {
            problem: Some(why.into()),
        });
        self.step(now, Input::Keeper(Err(why.into())));
    }

    pub(super) fn hear_keeper(&mut self, now: Instant) {
        for _ in 0..ROUND_MAX {
            let mut buffer = std::mem::take(&mut self.buffer);
            let received = self.keeper.receive(&mut buffer);
            self.buffer = buffer;
            match received {
                Ok(Some(messages)) => messages.into_iter().for_each(|message| self.heard(now, message)),
                Ok(None) => return,
                Err(_) if !self.trust.end(now) => return,
                Err(_) => {
                    let raw = self.keeper.as_fd().as_raw_fd();
                    let _ = self.poll.registry().deregister(&mut SourceFd(&raw));
                    return self.keeper_fails(now, "has ended; this process ends too, to be started again");
                }
            }
        }
        // More is waiting, and the event for it has been used up.
        let _ = self.waker.wake();
    }

    fn heard(&mut self, now: Instant, message: FromKeeper) {
        match message {
            FromKeeper::Reset { number } => {
                if self.trust.begun_anew(number) {
                    self.instruct();
                    self.tell(Event::Keeper { problem: None });
                    self.step(now, Input::Keeper(Ok(())));
                }
                return;
            }
            FromKeeper::Note { text } => return self.tell(Event::Note { text }),
            FromKeeper::Ready { problem: None } => return,
            FromKeeper::Ready { problem: Some(why) } => {
                self.trust.give_up();
                return self.keeper_fails(now, &why);
            }
            // Facts, not answers.
            FromKeeper::Link { interface, up } => {
                self.tracks.link(&interface, up);
                for vip in 0..self.plan.targets.len() {
                    if self.plan.targets[vip].interface == interface {
                        self.step(now, Input::Link { vip, up });
                    }
                }
                return;
            }
            FromKeeper::Foreign { target, present } => {
                if let Some(vip) = self.vip(&target) {
                    self.step(now, Input::Foreign { vip, present });
                }
                return;
            }
            _ => {}
        }
        if !self.trust.works() {
            // Answers to what was asked before the reset mean nothing any more.
            return;
        }
        let done = |vip, effect, result| Input::Done { vip, effect, result };
        let (target, make): (Target, Box<dyn FnOnce(VipIx) -> Input>) = match message {
            FromKeeper::Ack => {
                self.trust.acknowledged();
                return;
            }
            FromKeeper::Held { target } => (target, Box::new(move |v| done(v, Effect::Hold, Ok(())))),
            FromKeeper::Failed { target, why } => (target, Box::new(move |v| done(v, Effect::Hold, Err(why)))),
            FromKeeper::Released { target } => (target, Box::new(move |v| done(v, Effect::Release, Ok(())))),
            FromKeeper::Lost { target, why } => (target, Box::new(move |vip| Input::Lost { vip, why })),
            FromKeeper::Expired { target } => (target, Box::new(|vip| Input::Expired { vip })),
            _ => return,
        };
        if let Some(vip) = self.vip(&target) {
            self.step(now, make(vip));
        }
    }
}
