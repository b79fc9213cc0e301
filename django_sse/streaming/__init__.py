"""Streaming: what was published reaches each stream once and in order, or the stream is reset.

The way of an event, two steps of which are callbacks that no import shows:

1. `publishing.publish` encodes it, `stores` number and keep it.
2. `EventStore.append` calls the `ring` that it was given: `doorbells` tell every process.
3. A hub has registered itself by `doorbells.base.listen`. `hub.Hub.hear_soon` takes the hint into
   its event loop; `subscription.Subscription.hear` joins it to what it has, or reads the store.
4. `events.Batch` encodes what is new once for all, and each `stream.Stream` is given it by `take`.
5. `stream.Stream` calls the `send` that `http.hand_off.HandOff.serve` gave it: the server's own.

`rechecks` and `questions` end the streams that may not go on. The views and `http` import it.
"""
