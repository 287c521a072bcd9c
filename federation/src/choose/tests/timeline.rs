//! Timelines: what becomes of the shares when tiers die, return and die again. Each line of a script is
//! `<seconds> <event>… => <percent per tier>`; events are `fail x`, `ok x`, `lost c`, `alive c`, `gone x`, `back x`.

use super::*;
use std::time::Duration;

/// A caller's world that changes as the script says.
struct Stage {
    view: View,
    ladder: Ladder,
    health: Health,
    now: Timestamp,
    random: Dice,
}

impl Stage {
    fn new(view: View) -> Self {
        let ladder = ladder(&view);
        Self { view, ladder, health: Health::default(), now: NOW, random: Dice::new(3) }
    }

    fn event(&mut self, verb: &str, name: &str) {
        let hour = Duration::from_secs(3600);
        let settings =
            OutlierSettings { eject_for: hour, eject_for_at_most: hour, ..OutlierSettings::default() };
        match verb {
            "fail" => self.health.observe(self.now, &reviews(), &at(name), ConnectFailure, &settings),
            "ok" => self.health.observe(self.now, &reviews(), &at(name), Success, &settings),
            "lost" => self.health.path_lost(self.now, &name.parse().unwrap()),
            "alive" => self.health.path_alive(self.now, &name.parse().unwrap()),
            "gone" => {
                self.view.apply(&Change::EndpointGone(name.parse().unwrap()));
                self.rebuild();
            }
            "back" => {
                self.view = self.view.clone().endpoint(name, "eu/1", 100, true);
                self.rebuild();
            }
            "rebuild" => self.rebuild(),
            _ => panic!("{verb:?} is no event"),
        }
    }

    fn rebuild(&mut self) {
        self.ladder = Ladder::build(&self.view, &host(), &here(), Some(&self.ladder));
    }

    /// Runs the script, with a request at every line; fails with the first line that comes out differently.
    #[track_caller]
    fn play(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (events, expected) = line.split_once("=>").unwrap();
            let mut words = events.split_whitespace();
            let seconds: f64 = words.next().unwrap().parse().unwrap();
            self.now = NOW + Duration::from_secs_f64(seconds);
            while let Some(verb) = words.next() {
                self.event(verb, words.next().unwrap());
            }
            let asked = self.ladder.shares(self.now, &self.health);
            self.ladder.choose_at(self.now, &self.health, &[], self.random.roll()).unwrap();
            assert_eq!(asked, self.ladder.shares, "{line}: shares and choose agree");
            let percent = |share: &f64| format!("{:.0}", share * 100.0);
            let shares: Vec<_> = self.ladder.shares.iter().map(percent).collect();
            assert_eq!(shares.join(" "), expected.trim(), "{line}");
        }
    }
}

/// Two endpoints next door and one peer.
fn stage() -> Stage {
    Stage::new(
        world().endpoint("a", "eu/1", 100, true).endpoint("b", "eu/1", 100, true).peer("east", 100, 100),
    )
}

#[test]
fn traffic_leaves_at_once_and_returns_after_a_while_along_a_ramp() {
    stage().play(
        "0                 => 100 0
         1 fail a          => 71 29
         2 fail b          => 0 100
         3 ok a ok b       => 0 100
         20                => 0 100
         32.9              => 0 100
         33                => 0 100
         35.5              => 25 75
         38                => 50 50
         42                => 90 10
         43                => 100 0
         500               => 100 0",
    );
}

#[test]
fn the_share_stays_at_what_it_was() {
    stage().play(
        "0                 => 100 0
         1 fail a          => 71 29
         100               => 71 29
         101 ok a          => 71 29
         130               => 71 29
         136               => 86 14
         141               => 100 0",
    );
}

#[test]
fn a_relapse_starts_it_anew() {
    stage().play(
        "0                 => 100 0
         2 fail a fail b   => 0 100
         3 ok a ok b       => 0 100
         38                => 50 50
         38.5 fail a       => 55 45
         39 ok a           => 55 45
         68                => 55 45
         78.6              => 100 0
         90 fail a fail b  => 0 100
         91 ok a ok b      => 0 100
         119 fail a fail b => 0 100
         120 ok a ok b     => 0 100
         149               => 0 100
         155               => 50 50
         160               => 100 0",
    );
}

#[test]
fn a_tier_that_flaps_does_not_make_the_traffic_flap() {
    let mut stage = stage();
    stage.play("0 => 100 0");
    stage.play("1 fail a fail b => 0 100");
    for second in (2..100).step_by(2) {
        stage.play(&format!("{second} ok a ok b => 0 100"));
        stage.play(&format!("{} fail a fail b => 0 100", second + 1));
    }
}

#[test]
fn a_hold_is_ignored_where_nobody_else_is_left() {
    stage().play(
        "0                 => 100 0
         1 fail a fail b   => 0 100
         2 ok a ok b       => 0 100
         3 lost east       => 100 0
         4                 => 100 0
         5 alive east      => 100 0
         6 fail b          => 71 29",
    );
    // Lower tiers that are dead in part take what they can.
    let view = world().endpoint("a", "eu/1", 100, true).peer("east", 35, 100);
    Stage::new(view).play(
        "0                 => 100 0
         1 fail a          => 0 100
         2 ok a            => 50 50",
    );
}

#[test]
fn it_returns_step_by_step_if_it_recovers_in_part() {
    stage().play(
        "0                 => 100 0
         1 fail a fail b   => 0 100
         2 ok a            => 0 100
         37                => 50 50
         42                => 71 29
         50 ok b           => 71 29
         79                => 71 29
         90                => 100 0",
    );
}

#[test]
fn memory_is_carried_over_to_the_next_ladder() {
    stage().play(
        "0                 => 100 0
         1 fail a fail b   => 0 100
         2 ok a ok b       => 0 100
         3 rebuild x       => 0 100
         31.9 rebuild x    => 0 100
         37 rebuild x      => 50 50
         38 gone b         => 60 40
         42                => 100 0",
    );
}

#[test]
fn a_tier_that_a_view_takes_away_returns_like_any_other() {
    stage().play(
        "0                 => 100 0
         1 gone a          => 100 0
         2 gone b          => 100
         3 rebuild x       => 100
         4 back a          => 0 100
         33                => 0 100
         39                => 50 50
         44                => 100 0",
    );
    // Nothing was asked meanwhile, so nothing went elsewhere: nothing has to return.
    let mut stage = stage();
    stage.play("0 => 100 0");
    stage.event("gone", "a");
    stage.event("gone", "b");
    stage.event("back", "a");
    stage.play("5 => 100 0");
}

#[test]
fn a_new_ladder_starts_with_full_shares() {
    let mut stage = stage();
    stage.event("fail", "a");
    stage.event("fail", "b");
    stage.event("ok", "a");
    stage.event("ok", "b");
    stage.play("9 => 100 0");
    let mut stage = Stage::new(world().peer("east", 100, 100));
    stage.play("0 => 100");
    stage.play("1 back a => 100 0");
}

#[test]
fn a_middle_tier_returns_within_what_reaches_it() {
    let view = world().endpoint("a", "eu/1", 100, true).endpoint("b", "eu/1", 100, true);
    Stage::new(view.endpoint("c", "eu/2", 100, true).peer("east", 100, 100)).play(
        "0                 => 100 0 0
         1 fail a          => 71 29 0
         2 fail c          => 71 0 29
         3 ok c            => 71 0 29
         38                => 71 14 14
         43                => 71 29 0
         44 fail b         => 0 100 0",
    );
}

#[test]
fn return_at_once_if_the_policy_says_so() {
    let policy = r#"{ "locality": { "returnAfter": "0s" } }"#;
    let view = world().endpoint("a", "eu/1", 100, true).peer("east", 100, 100).policy("shop/p", policy);
    Stage::new(view).play(
        "0                 => 100 0
         1 fail a          => 0 100
         2 ok a            => 100 0",
    );
}

#[test]
fn a_distributed_cluster_returns_along_the_ramp_too() {
    let view =
        world().endpoint("a", "eu/1", 100, true).peer("east", 100, 100).policy("shop/p", EIGHTY_TWENTY);
    Stage::new(view).play(
        "0                 => 80 20
         1 lost east       => 100 0
         2 alive east      => 100 0
         31                => 100 0
         37                => 89 11
         42                => 80 20
         50 fail a         => 0 100
         51 ok a           => 0 100
         52 lost east      => 100 0",
    );
}

#[test]
fn a_clock_that_is_set_back_prolongs_no_hold() {
    let mut stage = stage();
    stage.play("10000 => 100 0");
    stage.play("10001 fail a fail b => 0 100");
    stage.play("10002 ok a ok b => 0 100");
    // Back by more than an hour: the hold is counted from there.
    stage.play("1 => 0 100");
    stage.play("41 => 100 0");
    stage.play("0 => 100 0");
}
