//! What the store seam promises, as one suite that every engine passes unchanged; and what only the embedded engine
//! has to promise about its files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

#[path = "store/claims.rs"]
mod claims;
#[path = "store/damaged.rs"]
mod damaged;
#[path = "store/forwards.rs"]
mod forwards;
#[allow(dead_code, reason = "shared with tests/cluster, which uses the rest")]
#[path = "shared/line.rs"]
mod line;
#[path = "store/operators.rs"]
mod operators;
#[path = "store/order.rs"]
mod order;
#[path = "store/postgres.rs"]
mod postgres;
#[path = "store/retention.rs"]
mod retention;
#[path = "store/secrets.rs"]
mod secrets;
#[allow(dead_code, reason = "shared with tests/cluster, which uses the rest")]
#[path = "shared/postgres.rs"]
mod server;
#[path = "store/sqlite.rs"]
mod sqlite;
#[path = "store/steps.rs"]
mod steps;
#[path = "store/support.rs"]
mod support;

/// Runs every promise against the engine that `$engine` makes.
macro_rules! conformance {
    ($engine:expr) => {
        conformance!($engine, claims:
            a_delivery_is_stored_once
            bytes_come_back_exactly
            a_repetition_by_id_is_a_duplicate
            the_same_signed_bytes_under_another_id_are_a_replay
            the_id_decides_before_the_guard
            a_delivery_without_keys_is_never_a_duplicate
            ids_are_scoped_to_their_source
            an_expired_claim_gives_way
            another_body_under_the_same_id_is_a_conflict
            of_a_hundred_concurrent_copies_one_is_stored
            duplicates_stay_duplicates_after_a_restart
        );
        conformance!($engine, forwards:
            what_is_due_is_leased_oldest_first_up_to_the_limit
            a_lease_counts_the_attempt
            a_forward_is_leased_once_at_a_time
            large_bodies_are_leased_in_parts
            a_settlement_of_another_attempt_changes_nothing
            a_failed_attempt_waits_until_it_is_due_again
            a_lease_that_is_given_back_costs_no_attempt
            the_next_due_time_is_known
            due_times_that_no_pause_can_explain_are_reined_in
            forwards_are_due_and_pending_by_steady_time
            a_place_in_the_lane_needs_no_lease
            a_full_lane_is_woken
            a_crash_in_flight_keeps_the_attempt_counted
            a_destination_named_twice_gets_one_forward
            dead_forwards_are_revived_as_replays
            a_duplicate_revives_dead_forwards_only_when_asked
            depths_follow_every_transition_and_survive_a_restart
            a_closed_store_says_so
        );
        conformance!($engine, order:
            one_key_waits_for_its_first_and_others_flow_on
            a_place_in_the_lane_is_given_to_nobody_out_of_turn
            a_dead_letter_parks_its_key_or_lets_it_go_on
            what_waits_is_brought_into_a_new_order
            ten_thousand_behind_one_key_delay_neither_it_nor_others
            keys_keep_their_order_at_random
        );
        conformance!($engine, operators:
            deliveries_are_listed_newest_first_page_by_page
            every_part_of_a_filter_has_to_hold
            a_text_is_looked_for_where_nothing_is_masked
            a_search_goes_on_where_its_bytes_ended
            a_delivery_without_a_forward_is_unrouted
            a_delivery_id_is_found_by_its_claim_and_its_elders_after_it
            a_history_tells_of_forwards_and_attempts
            dead_letters_are_counted_by_destination_and_outcome
            dead_letters_are_listed_across_destinations
            targets_are_what_a_change_fits_in_the_order_of_arrival
            a_replay_to_one_destination_leaves_the_others_alone
            what_waits_is_not_doubled
            a_purged_one_can_be_replayed_until_retention_takes_it
            what_is_cancelled_is_not_leased_and_not_settled
            the_end_of_an_attempt_before_a_replay_changes_nothing
            depths_follow_what_operators_change
        );
        conformance!($engine, secrets:
            the_use_of_secrets_is_known_after_a_restart
            a_secret_that_was_handed_over_is_shown_once
        );
        conformance!($engine, steps: forwards_move_as_the_state_machine_says);
        conformance!($engine, retention:
            delivered_ones_go_after_the_retention
            pending_and_dead_ones_stay_whatever_their_age
            unrouted_ones_go_after_the_retention
            expired_claims_go_and_others_stay
            a_claim_outlives_a_clock_that_was_a_day_ahead
            a_claim_ends_when_it_has_ended_by_both_readings
            more_than_one_step_is_swept_in_one_go
        );
    };
    ($engine:expr, $area:ident: $($promise:ident)*) => {
        mod $area {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    crate::$area::$promise(crate::support::Bench::new($engine).await).await;
                }
            )*
        }
    };
}

mod embedded {
    conformance!(Box::new(crate::sqlite::Embedded::new()));
}

mod shared {
    conformance!(Box::new(crate::postgres::Shared::new()));
}
