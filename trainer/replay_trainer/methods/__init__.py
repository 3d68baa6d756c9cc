"""Methods against forgetting, as arithmetic on losses and features: FLOW, LDIFS, distilled rehearsal."""
