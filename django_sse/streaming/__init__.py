"""Streaming: each published event reaches each stream once and in order, or the stream is reset.

An event takes these steps. Steps 2 and 5 are callbacks that no import shows:

1. `publishing.publish` encodes the event. `stores` number and keep it.
2. `EventStore.append` calls the `ring` that it was given: `doorbells` tell every process.
3. The hub has registered itself with `doorbells.base.listen`. `hub.Hub.hear_soon` takes the hint
   into its event loop. `subscription.Subscription.hear` joins it to the events that the
   subscription has, or reads the store.
4. `fan_out` gives the groups their turns. `encoded_events` encodes and joins new events once for
   all streams of a group. Each stream gets them in `stream.Stream.take`.
5. The stream's `send_queue.SendQueue` calls the server's own `send`, which
   `http.hand_off.HandOff.serve` gave it.

What is due without an event, such as a heartbeat, is found at the hub's tick: `timetable` knows
which streams to look at.

`rechecks` and `permission_rechecks` end streams that may not go on. The views and `http` import
this package.
"""
